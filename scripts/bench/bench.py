"""How fast the hot paths are, beside a plain loop and this machine's own peak, in one run.

    python scripts/bench.py [NAME ...] [--rounds 5] [--json bench.json] [--smoke] [key=value ...]

Device settings are the commands' (device=, precision=, compile=, threads=). `ratio` is ours over
a plain eager fp32 NCHW loop of the same model, which runs in a process of its own (as it would
without this project: torch's and the allocator's defaults), in turn with ours (on CUDA 20 steps at
a time). `of peak` is the share of the machine's own largest matrix product (fp32, or bf16 where the
run is bf16). Run it with nothing else running.
"""


import torch

import core.run
from core import config, files
from core.command import Parser, command, positive
from core.device import DeviceSettings, resolve
from scripts.bench import attacks, classifiers, data, diffusion, vaes, views
from scripts.bench.clock import Bench
from scripts.bench.scratch import scratch_run

# In the table's order.
BENCHES = {
    "resnet": classifiers.resnet, "adversarial": classifiers.adversarial_step,
    "evaluate": classifiers.evaluate, "pgd": attacks.pgd_step, "dvae": vaes.vae,
    "unet": diffusion.unet, "rem": attacks.rem_step, "free": attacks.free, "batches": data.loader,
    "streamed": data.streamed, "views": views.views, "levers": diffusion.levers}


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/bench.py", __doc__)
    parser.add_argument("names", nargs="*", metavar="NAME | key=value",
                        help=f"some of {', '.join(BENCHES)}; by default all but streamed, levers")
    parser.add_argument("--rounds", type=positive, default=5, help="timed rounds after the warm-up")
    parser.add_argument("--json", type=config.as_path, help="also write the numbers here")
    parser.add_argument("--smoke", action="store_true", help="tiny models, one round")
    arguments = parser.parse_intermixed_args(argv)
    names = [word for word in arguments.names if "=" not in word]
    names = names or [name for name in BENCHES if name not in ("streamed", "levers")]
    for name in names:
        if name not in BENCHES:
            parser.error(f"unknown bench '{name}'{config.suggest(name, list(BENCHES))}")
    if arguments.json:
        arguments.json = files.replaceable(arguments.json, b"{")
    overrides = config.read([], [word for word in arguments.names if config.is_setting(word)])
    device = resolve(config.build(DeviceSettings, overrides, ""))

    core.run.SAVE_SECONDS = float("inf")
    with scratch_run(device) as run:
        bench = Bench(run, 1 if arguments.smoke else arguments.rounds, arguments.smoke)
        about = device.as_record()
        print(f"{about['hardware']}, {device.name}, {device.precision}, compile {device.compile}, "
              f"{device.threads} threads, torch {torch.__version__}; largest matrix product "
              f"{bench.peak / 1e9:,.0f} GFLOP/s\n")
        print("| what | images/s | ratio | of peak | peak GB | |\n|---|---|---|---|---|---|")
        rows = []
        for name in names:
            for row in BENCHES[name](bench):
                rows.append(row)
                rate = f"{row.rate:,.0f}" if row.rate >= 100 else f"{row.rate:.1f}"
                print(f"| {row.name} | {rate} | {cell(row.ratio, '.2f')} | "
                      f"{cell(row.share, '.0%')} | {cell(row.memory_gb, '.1f')} | {row.note} |",
                      flush=True)
    if arguments.json:
        files.write_json(arguments.json, {
            **about, "torch": torch.__version__, "peak_flops": bench.peak,
            "rows": [vars(row) for row in rows]})


def cell(value: float | None, form: str) -> str:
    return "" if value is None else format(value, form)
