"""train_ddpm.py and DDPM purification: against formulas retyped here, over kills and processes."""

import contextlib
import hashlib
import json
import math
import signal
import time

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import ROOT, content, new_run, process, run_command, succeed, write_imageset
from safetensors.torch import load_file

import purify
import train_ddpm
from core import distributed
from core.errors import UserError
from core.imageset import ImageSet
from models.unet import UNet
from poisons import __main__ as poisons
from purifiers import prior, walk

TRAIN = ["method=ddpm", "ddpm.train.width=32", "ddpm.train.batch_size=16", "ddpm.train.steps=8",
         "ddpm.train.multipliers=[1, 1]", "ddpm.train.blocks=1", "ddpm.train.attention=[8]",
         "ddpm.train.sample_every=4", "ddpm.train.flip=false", "threads=1"]
APPLY = ["method=ddpm", "ddpm.t_star=5", "threads=1"]


@pytest.fixture(scope="module")
def few_path(digits, tmp_path_factory):
    """320 digits of 8x8 as an ImageSet folder. Not to be changed."""
    return write_imageset(tmp_path_factory.mktemp("sets") / "few", digits.images[:320, ::2, ::2],
                          digits.labels[:320], test=None)


@pytest.fixture(scope="module")
def few(few_path) -> ImageSet:
    return ImageSet.load(few_path)


@pytest.fixture(scope="module")
def trained(few_path, tmp_path_factory):
    return succeed(train_ddpm.main, *TRAIN, f"data={few_path}",
                   f"out={tmp_path_factory.mktemp('ddpm') / 'trained'}")


# --- training --------------------------------------------------------------------------------


def test_the_antithetic_steps():
    generator = torch.Generator().manual_seed(0)
    config = prior.TrainConfig(t_train_max=250)
    t = prior.draw_steps(7, config, generator)
    assert t.tolist()[4:] == [249 - step for step in t.tolist()[:3]]
    many = prior.draw_steps(100_000, config, generator)
    assert (many.min(), many.max()) == (0, 249)
    counts = torch.bincount(many).float()
    assert (counts / 400 - 1).abs().max() < 0.3
    plain = prior.draw_steps(100_000, prior.TrainConfig(antithetic=False), generator)
    assert (plain[:50_000] + plain[50_000:] != 999).any()


@pytest.mark.parametrize(("steps", "kept"), [
    (1_000, .90483289), (5_000, .6065155), (10_000, .36786105), (80_000, 3.3532846e-4)])
def test_what_an_ema_keeps_of_its_start(steps, kept):
    """With a constant decay: 0.9999^steps."""
    config = prior.TrainConfig(ema_start="init")
    left = math.prod(1 - prior.ema_weight(step, config) for step in range(steps))
    assert left == pytest.approx(kept, rel=1e-6)


def test_a_warm_ema_forgets_its_start():
    """decay min(0.9999, (1 + n) / (10 + n)): after n steps a window of about n / 9."""
    config = prior.TrainConfig()
    assert prior.ema_weight(0, config) == pytest.approx(0.9)
    assert prior.ema_weight(989, config) == pytest.approx(9 / 999)
    assert prior.ema_weight(10**6, config) == pytest.approx(1e-4)
    left = math.prod(1 - prior.ema_weight(step, config) for step in range(1000))
    assert left < 1e-15


@pytest.mark.parametrize(("decay", "said"), [(0.9, True), (0.6, False)])
def test_what_an_ema_keeps_is_said_where_it_is_much(few_path, decay, said):
    """8 steps: 0.9^8 = 43 %, 0.6^8 = 1.7 %."""
    outcome = run_command(train_ddpm.main, *TRAIN, f"data={few_path}", "ddpm.train.sample_every=0",
                          "ddpm.train.ema_start=init", f"ddpm.train.ema_decay={decay}")
    assert outcome.status == 0
    assert ("which purifies, 43% stays its random start after 8 steps" in outcome.stderr) == said


@pytest.mark.parametrize(("loss", "ema_start", "dropout"), [
    ("mean", "init", 0.0), ("sum", "warmup", 0.1)])
def test_training_is_ho_et_als(few, tmp_path, loss, ema_start, dropout):
    """Two epochs of two steps against a plain loop: noise at random steps, predict it, clip, Adam,
    EMA."""
    config = prior.TrainConfig(
        steps=4, batch_size=64, width=32, multipliers=(1, 1), blocks=1, attention=(),
        dropout=dropout, flip=False, warmup_steps=3, loss=loss, ema_start=ema_start, ema_decay=0.9,
        sample_every=0)
    with new_run(tmp_path / "run") as run:
        prior.train(few.first(128), config, run)
        found = {part: load_file(run.work / f"{part}.safetensors") for part in ("model", "ema")}

        model = prior.build_model(config, (8, 8), run)
        ema = {name: p.detach().clone() for name, p in model.named_parameters()}
        optimizer = torch.optim.Adam(model.parameters(), lr=2e-4)
        betas = np.linspace(1e-4, 0.02, 1000)
        abar = torch.tensor(np.cumprod(1 - betas))
        for number in range(4):
            epoch, place = divmod(number, 2)
            order = torch.randperm(128, generator=run.stream("ddpm/batches", epoch)).numpy()
            order = order[64 * place:64 * (place + 1)]
            x0 = torch.from_numpy(few.images[order]).permute(0, 3, 1, 2) / 127.5 - 1
            generator = run.stream("ddpm/step", number)
            t = torch.randint(1000, (33,), generator=generator)
            t = torch.cat([t, 999 - t])[:64]
            eps = torch.randn(64, 8, 8, 3, generator=generator).permute(0, 3, 1, 2)
            a = abar[t].float()[:, None, None, None]
            run.reseed("ddpm/dropout/0", number)
            error = F.mse_loss(model(a.sqrt() * x0 + (1 - a).sqrt() * eps, t), eps)
            optimizer.zero_grad()
            (error * (192 if loss == "sum" else 1)).backward()
            norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
            for p in model.parameters():
                p.grad.mul_(min(1.0, 1.0 / norm))
            optimizer.param_groups[0]["lr"] = 2e-4 * min(1, (number + 1) / 3)
            optimizer.step()
            keep = min(0.9, (1 + number) / (10 + number)) if ema_start == "warmup" else 0.9
            for name, p in model.named_parameters():
                ema[name] = keep * ema[name] + (1 - keep) * p.detach()
    for name, p in model.named_parameters():
        torch.testing.assert_close(found["model"][name], p.detach(), atol=2e-5, rtol=1e-4)
        torch.testing.assert_close(found["ema"][name], ema[name], atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize(("steps", "warmup"), [(40, 4), (100_000, 5000)])
def test_the_rate_warms_up_over_a_tenth_and_at_most_5000_steps(few, tmp_path, steps, warmup):
    config = prior.TrainConfig(steps=steps)
    x = torch.tensor(few.images[:2]).permute(0, 3, 1, 2) / 255
    with new_run(tmp_path / "run") as run:
        model = Shift()
        optimizer = prior.make_optimizer(model, config, run)
        step = prior.training_step(model, optimizer, config, run)
        for number in (0, 1, warmup - 2, warmup - 1, warmup):
            step(x, number)
            [group] = optimizer.param_groups
            assert float(group["lr"]) == pytest.approx(2e-4 * min(1, (number + 1) / warmup))


class Shift(torch.nn.Module):
    """The smallest noise prediction."""

    def __init__(self):
        super().__init__()
        self.by = torch.nn.Parameter(torch.zeros(1))

    def forward(self, x, t):
        return x + self.by


def test_the_optimiser_is_ho_et_als(tmp_path):
    """Two steps hardly tell Adam's constants apart."""
    config = prior.TrainConfig()
    with new_run(tmp_path / "run") as run:
        optimizer = prior.make_optimizer(torch.nn.Linear(1, 1), config, run)
    assert type(optimizer) is torch.optim.Adam
    [group] = optimizer.param_groups
    assert (group["lr"], group["betas"], group["eps"]) == (2e-4, (0.9, 0.999), 1e-8)
    assert group["weight_decay"] == 0
    assert not group["amsgrad"]


def test_only_the_small_steps_are_trained(few, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(UNet, "forward",
                        lambda self, x, t: seen.append(t) or self.conv_in(x)[:, :3])
    config = prior.TrainConfig(steps=4, batch_size=64, width=32, multipliers=(1, 1), attention=(),
                               t_train_max=25, sample_every=0)
    with new_run(tmp_path / "run") as run:
        prior.train(few, config, run)
    assert torch.cat(seen).max() < 25


def test_what_a_checkpoint_tells(trained, few_path):
    meta = json.loads((trained / "meta.json").read_text())
    assert set(meta["digests"]) == {"model.safetensors", "ema.safetensors", "samples-0000004.png",
                                    "samples-0000008.png"}
    assert meta["trained_on"]["shape"] == [320, 8, 8, 3]
    assert meta["trained_on"]["fingerprint"] == ImageSet.load(few_path).fingerprint
    model, ema = (load_file(trained / f"{part}.safetensors") for part in ("model", "ema"))
    assert any((model[name] != ema[name]).any() for name in model)


def test_the_samples_are_pictures(trained):
    from PIL import Image

    pixels = np.asarray(Image.open(trained / "samples-0000008.png"))
    assert pixels.shape[2] == 3
    assert pixels.shape[1] >= 8 * 8
    assert pixels.std() > 5


def test_the_samples_are_of_the_ema(few, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(prior, "save_samples", lambda model, *rest: seen.append(
        {name: value.clone() for name, value in model.state_dict().items()}))
    config = prior.TrainConfig(steps=3, batch_size=16, width=32, multipliers=(1, 1), blocks=1,
                               attention=(), sample_every=2)
    with new_run(tmp_path / "run") as run:
        prior.train(few, config, run)
        ema = load_file(run.work / "ema.safetensors")
    assert len(seen) == 2                   # after step 2, and at the end
    assert all(torch.equal(seen[-1][name], ema[name]) for name in ema)
    assert any((seen[0][name] != ema[name]).any() for name in ema)


def test_fine_tuning_starts_from_a_checkpoint(trained, few_path, tmp_path):
    """And says what that was trained on."""
    keys = [*TRAIN, f"data={few_path}", f"ddpm.train.init_from={trained}", "ddpm.train.steps=1",
            "ddpm.train.sample_every=0", "ddpm.train.learning_rate=1e-9"]
    source = {part: load_file(trained / f"{part}.safetensors") for part in ("model", "ema")}
    for start, expected in (("source", "ema"), ("init", "model"), ("warmup", None)):
        out = succeed(train_ddpm.main, *keys, f"ddpm.train.ema_start={start}")
        found = {part: load_file(out / f"{part}.safetensors") for part in ("model", "ema")}
        for name in found["ema"]:
            torch.testing.assert_close(found["model"][name], source["model"][name])
            if expected:
                torch.testing.assert_close(found["ema"][name], source[expected][name],
                                           atol=1e-4, rtol=1e-4)
        meta = json.loads((out / "meta.json").read_text())
        assert meta["trained_on"]["after"]["name"] == "few"
        assert "init_from" not in meta["config"]        # it counts by content
    assert succeed(purify.main, *APPLY, f"data={few_path}", f"checkpoint={out}", "--limit", "8",
                   f"out={tmp_path / 'purified'}").exists()
    refused = run_command(train_ddpm.main, *TRAIN, f"data={few_path}",
                          "ddpm.train.ema_start=source")
    assert refused.error == ("ddpm.train.ema_start: source needs init_from, a checkpoint")
    refused = run_command(train_ddpm.main, "ddpm", "preset=finetune",
                          f"data={few_path}")
    assert refused.error.startswith("ddpm.train.init_from: CHECKPOINT: no such folder")


def test_fine_tuning_takes_the_network_and_the_noise_of_its_checkpoint(trained, few_path, digits,
                                                                       tmp_path):
    """Of other noise, and of other sizes, the weights have the same shapes."""
    line = [*TRAIN, f"ddpm.train.init_from={trained}"]
    for key, value in (("beta_end", 0.03), ("diffusion_steps", 1100)):
        refused = run_command(train_ddpm.main, *line, f"data={few_path}",
                              f"ddpm.train.{key}={value}")
        assert refused.status == 1
        assert f"trained has {key} " in refused.error
    large = write_imageset(tmp_path / "large", digits.images[:64], digits.labels[:64])
    refused = run_command(train_ddpm.main, *line, f"data={large}")
    assert refused.status == 1
    assert "8x8" in refused.error


@pytest.mark.slow
def test_training_survives_kill_9(few_path, tmp_path):
    """At five random moments: weights and EMA are those of an uninterrupted run."""
    keys = ["train_ddpm.py", *TRAIN, "ddpm.train.steps=60", f"data={few_path}"]
    keys[0] = ROOT / keys[0]
    straight = process(*keys, f"out={tmp_path / 'straight'}")
    assert straight.wait(timeout=600) == 0, straight.stderr.read()
    rng = np.random.default_rng(0)
    for _ in range(5):
        started = time.time()
        running = process("-c", "import core.run, sys; core.run.SAVE_SECONDS = 0.2\n"
                          "import train_ddpm; sys.argv[0] = 'train_ddpm.py'\n"
                          "train_ddpm.main()", *keys[1:], f"out={tmp_path / 'killed'}")
        while not any(path.stat().st_mtime > started        # it has come further than the last one
                      for path in (tmp_path / "killed.partial" / "state").glob("*.pt")):
            assert running.poll() is None
            assert time.time() < started + 300
            time.sleep(0.02)
        time.sleep(rng.uniform(0, 0.5))
        running.send_signal(signal.SIGKILL)
        assert running.wait() == -signal.SIGKILL, running.stderr.read()
    last = process(*keys, f"out={tmp_path / 'killed'}")
    said = last.communicate()[1]
    assert last.returncode == 0, said
    assert "resuming" in said
    assert content(tmp_path / "killed") == content(tmp_path / "straight")


def test_training_resumes_bit_for_bit(trained, few_path, tmp_path, monkeypatch):
    """Stopped after 5 of 8 steps, in the middle of an epoch."""
    original, count = prior.update_ema, []

    def dying(ema, model, weight):
        original(ema, model, weight)
        count.append(1)
        if len(count) == 6:
            raise KeyboardInterrupt

    monkeypatch.setattr(prior, "update_ema", dying)
    monkeypatch.setattr("core.run.SAVE_SECONDS", 0.0)
    out = f"out={tmp_path / 'again'}"
    assert run_command(train_ddpm.main, *TRAIN, f"data={few_path}", out).status == 130
    monkeypatch.setattr(prior, "update_ema", original)
    resumed = run_command(train_ddpm.main, *TRAIN, f"data={few_path}", out)
    assert "resuming" in resumed.stderr
    assert content(resumed.path) == content(trained)
    assert (resumed.path / "samples-0000008.png").read_bytes() == \
        (trained / "samples-0000008.png").read_bytes()


@pytest.mark.parametrize(("steps", "message"), [
    (["ddpm.train.width=48"], "width: 48 is out of range: it must be at least 32 in steps of 32"),
    (["ddpm.train.multipliers=[]"], "a list of 0 is out of range: its length must be at least 1"),
    (["ddpm.train.t_train_max=1001"], "at most 1000"),
    (["ddpm.train.multipliers=[1, 2, 2, 2, 2, 2]"], "multiple of 32, not 8x8"),
    (["ddpm.train.batch_size=500"], "too few for a batch of 500"),
    (["ddpm.train.attention=[8, 2]"], "no level of the network has sides of [2]"),
])
def test_bad_training_keys(few_path, steps, message):
    outcome = run_command(train_ddpm.main, *TRAIN, f"data={few_path}", *steps)
    assert outcome.status == 1
    assert message in outcome.error


# --- purification ----------------------------------------------------------------------------


@pytest.mark.parametrize(("passes", "sampler", "rounding"), [
    (1, "ancestral", "round"), (2, "ancestral", "wrap"), (2, "ddim", "floor")])
def test_purification_is_a_plain_loop(trained, few, few_path, passes, sampler, rounding):
    """Noise to step 4, five posterior draws or steps of DDIM, the same of what came out, rounding:
    retyped with the weights alone."""
    out = succeed(purify.main, *APPLY, f"data={few_path}", f"checkpoint={trained}",
                  f"ddpm.passes={passes}", f"ddpm.sampler={sampler}", "ddpm.evaluations=5",
                  f"ddpm.rounding={rounding}")
    model = UNet(32, (1, 1), 1, (8,), 8)
    model.load_state_dict(load_file(trained / "ema.safetensors"))
    model.eval()
    betas = np.linspace(1e-4, 0.02, 1000)
    abar = np.cumprod(1 - betas)

    def noise(number, kind, block):
        seed = hashlib.sha256(f"0/pass{number}/{kind}/{block}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(seed[:8], "little") >> 1)
        return torch.randn(256, 8, 8, 3, generator=generator).permute(0, 3, 1, 2)

    for block, rows in ((0, slice(0, 256)), (1, slice(256, 320))):
        x = torch.from_numpy(np.array(few.images[rows])).permute(0, 3, 1, 2) / 127.5 - 1
        count = len(x)
        for number in range(passes):
            x = (math.sqrt(abar[4]) * x
                 + math.sqrt(1 - abar[4]) * noise(number, "forward0", block)[:count])
            for t in (4, 3, 2, 1, 0):
                before = abar[t - 1] if t else 1.0
                with torch.no_grad():
                    eps = model(x, torch.full((count,), t))
                x0 = ((x - math.sqrt(1 - abar[t]) * eps) / math.sqrt(abar[t])).clamp(-1, 1)
                if sampler == "ddim":
                    eps = (x - math.sqrt(abar[t]) * x0) / math.sqrt(1 - abar[t])
                    x = math.sqrt(before) * x0 + math.sqrt(1 - before) * eps
                    continue
                x = (math.sqrt(before) * betas[t] / (1 - abar[t]) * x0
                     + math.sqrt(1 - betas[t]) * (1 - before) / (1 - abar[t]) * x)
                if t:
                    x = x + math.sqrt(betas[t]) * noise(number, f"sample{t}", block)[:count]
        levels = ((x + 1) * 127.5).permute(0, 2, 3, 1).numpy()
        expected = {"round": np.rint(levels.clip(0, 255)), "floor": np.floor(levels.clip(0, 255)),
                    "wrap": np.floor(levels) % 256}[rounding]
        found = np.load(out / "images.npy")[rows]
        apart = np.abs(found - expected)
        assert np.minimum(apart, 256 - apart).max() <= 1
        assert (found != expected).mean() < 1e-3


def test_the_batch_changes_next_to_nothing(trained, few_path, tmp_path):
    sets = [np.load(succeed(purify.main, *APPLY, f"data={few_path}", f"checkpoint={trained}",
                            f"ddpm.batch_size={size}", f"out={tmp_path / str(size)}",
                            "--limit", "50") / "images.npy").astype(int)
            for size in (16, 25, 50)]
    for other in sets[1:]:
        assert np.abs(sets[0] - other).max() <= 1
        assert (sets[0] != other).mean() < 1e-3


def test_one_graph_for_every_slice(trained, few_path, tmp_path, monkeypatch):
    """Of 40 rows by 25 the last slice is padded: compiled once, whole, with the same result."""
    from torch._dynamo.testing import CompileCounter

    counter, original = CompileCounter(), torch.compile
    monkeypatch.setattr(torch, "compile", lambda function, dynamic: original(
        function, dynamic=dynamic, fullgraph=True, backend=counter))
    monkeypatch.setenv("CXX", "none is called")
    keys = [*APPLY, f"data={few_path}", f"checkpoint={trained}", "ddpm.batch_size=25",
            "--limit", "40"]
    compiled, plain = (np.load(succeed(purify.main, *keys, f"out={tmp_path / name}",
                                       f"compile={name}") / "images.npy").astype(int)
                       for name in ("true", "false"))
    assert counter.frame_count == 1
    assert np.abs(compiled - plain).max() <= 1
    assert (compiled != plain).mean() < 1e-3


@pytest.mark.parametrize("sampler", ["subsampled", "ddim", "euler_maruyama"])
def test_samplers(trained, few_path, sampler, monkeypatch):
    """Each asks the network as often as the run says."""
    calls, original = [], UNet.forward
    monkeypatch.setattr(UNet, "forward", lambda self, x, t: calls.append(t) or original(self, x, t))
    outcome = run_command(purify.main, *APPLY, f"data={few_path}", f"checkpoint={trained}",
                          "--limit", "64", f"ddpm.sampler={sampler}", "ddpm.evaluations=2")
    assert f"1 x {len(calls)} network evaluations an image ({sampler}, from" in outcome.stderr
    asked = [round(t.item(), 3) for t in calls]
    assert asked == {"subsampled": [4, 2], "ddim": [4, 2],
                     "euler_maruyama": [4.995, 3.996, 2.997, 1.998, 0.999]}[sampler]
    before, after = (np.load(path / "images.npy")[:64] for path in (few_path, outcome.path))
    assert not np.array_equal(before, after)


def test_released_cast_wraps():
    pixels = torch.tensor([1.004, 1.01, -0.004, -0.01, 0.5, 1.0])
    assert walk.wrapped(pixels).mul(255).round().tolist() == [0, 1, 255, 254, 127, 255]


@pytest.mark.parametrize(("keys", "message"), [
    (["ddpm.t_star=0"], "ddpm.t_star: 0 is out of range: it must be at least 1"),
    (["ddpm.t_star=2000"], "ddpm.t_star: 2000 steps, but"),
    (["ddpm.sampler=subsampled", "ddpm.evaluations=9"], "9 are more than the 5 steps"),
    (["ddpm.start_index=6"], "start_index: 6, but the network starts at step 4 (t_star: 5)"),
    (["ddpm.start_index=3"], "it is 4 or 5"),
])
def test_bad_purification_keys(trained, few_path, keys, message):
    outcome = run_command(purify.main, *APPLY, f"data={few_path}", f"checkpoint={trained}", *keys)
    assert outcome.status == 1
    assert message in outcome.error


def test_a_prior_of_few_steps_refuses_more(few_path):
    short = succeed(train_ddpm.main, *TRAIN, f"data={few_path}", "ddpm.train.t_train_max=8",
                    "ddpm.train.steps=1", "ddpm.train.sample_every=0")
    for keys in (["ddpm.t_star=9"], ["ddpm.t_star=8", "ddpm.start_index=8"]):
        outcome = run_command(purify.main, *APPLY, f"data={few_path}", f"checkpoint={short}", *keys)
        assert outcome.error == (f"ddpm.t_star: 9 steps, but {short} was trained on the first 8 "
                                 "only")
    assert run_command(purify.main, "method=ddpm", "threads=1", f"data={few_path}", "--limit", "8",
                       f"checkpoint={short}", "ddpm.t_star=8").status == 0      # all that it knows


def test_euler_maruyama_is_for_one_schedule_and_the_others_for_any(few_path):
    other = succeed(train_ddpm.main, *TRAIN, f"data={few_path}", "ddpm.train.beta_end=0.03",
                    "ddpm.train.steps=1", "ddpm.train.sample_every=0")
    line = [purify.main, *APPLY, f"data={few_path}", "--limit", "8", f"checkpoint={other}"]
    assert run_command(*line, "ddpm.sampler=euler_maruyama").error == (
        "ddpm.sampler: euler_maruyama is for 1,000 steps with betas from 1e-4 to 0.02, which "
        f"{other} does not have")
    assert run_command(*line, "ddpm.sampler=ancestral").status == 0


def test_crops_reach_every_place(tmp_path):
    """Of each image its own: 2 x 4 places of 4 pixels a side in 5 by 7."""
    image = torch.arange(35.0).view(1, 1, 5, 7).expand(400, 3, 5, 7)
    with new_run(tmp_path / "run") as run:
        found = prior.random_crops(image, 4, run.stream("crop"))
    assert found.shape == (400, 3, 4, 4)
    places = torch.bincount(found[:, 0, 0, 0].long(), minlength=35).view(5, 7)
    assert (places[:2, :4] > 25).all()                  # 50 each
    assert places.sum() == places[:2, :4].sum()
    for crop in found[:50]:
        top, left = divmod(int(crop[0, 0, 0]), 7)
        assert torch.equal(crop, image[0, :, top : top + 4, left : left + 4])


def test_non_finite_pixels_name_step_and_row(trained, few_path, monkeypatch):
    original, calls = UNet.forward, []

    def breaking(self, x, t):
        eps = original(self, x, t)
        calls.append(t)
        if len(calls) == 8:             # second slice, third step: t = 2
            eps[17] = float("nan")
        return eps

    monkeypatch.setattr(UNet, "forward", breaking)
    outcome = run_command(purify.main, *APPLY, f"data={few_path}", f"checkpoint={trained}")
    assert outcome.error.endswith("row 273 has non-finite pixels after step 2 of pass 1; look at "
                                  f"the checkpoint {trained}")


def test_a_clean_set_is_noted(trained, few_path):
    outcome = run_command(purify.main, *APPLY, f"data={few_path}", f"checkpoint={trained}",
                          "--limit", "8")
    assert "note: nothing here poisoned few (lineage: none)" in outcome.stderr
    assert (f"note: {trained} was trained on 320 images of digits: clean originals of these images"
            in outcome.stderr)


def test_a_prior_of_poisoned_images_is_noted(few_path, tmp_path):
    poisoned = succeed(poisons.main, "method=random_signs", f"data={few_path}")
    learned = succeed(train_ddpm.main, *TRAIN, f"data={poisoned}", "ddpm.train.steps=1",
                      "ddpm.train.sample_every=0")
    outcome = run_command(purify.main, *APPLY, f"data={poisoned}", f"checkpoint={learned}",
                          "--limit", "8")
    assert "+ random_signs: if those are poisoned, it learned the poison too" in outcome.stderr


# --- several processes -----------------------------------------------------------------------


def test_processes_share_purification(trained, few_path, tmp_path):
    """Two processes, one of which is killed; then two, by the real torchrun: the bytes of one."""
    line = [ROOT / "purify.py", *APPLY, "ddpm.batch_size=64", f"data={few_path}",
            f"checkpoint={trained}"]
    alone = succeed(purify.main, *line[1:], f"out={tmp_path / 'alone'}")

    dying = process("-m", "tests.dying_rank", *line[1:], f"out={tmp_path / 'shared'}", ranks=2)
    dying.communicate(timeout=120)
    assert dying.returncode != 0
    assert (tmp_path / "shared.partial").exists()

    again = process(*line, f"out={tmp_path / 'shared'}", ranks=2, torchrun=True)
    stdout, stderr = again.communicate(timeout=120)
    assert again.returncode == 0, stderr
    assert stdout == f"{tmp_path / 'shared'}\n"
    assert "resuming" in stderr
    assert content(tmp_path / "shared") == content(alone)


def test_a_leader_that_fails_keeps_nobody_waiting(monkeypatch):
    """As where a set's test images are gone, which a purification does without."""
    met = []
    monkeypatch.setattr(distributed.World, "barrier", lambda world: met.append(world.rank))
    for failing in (True, False):
        with contextlib.suppress(UserError), distributed.World(0, 2).leader_first():
            if failing:
                raise UserError("gone")
    assert met == [0, 0]


@pytest.mark.slow
def test_processes_share_training(trained, few_path, tmp_path):
    """The same global batches: the same weights up to rounding. Four processes write one set."""
    both = process(ROOT / "train_ddpm.py", *TRAIN, f"data={few_path}", f"out={tmp_path / 'both'}",
                   "ddpm.train.dropout=0", ranks=4, torchrun=True)
    succeed(train_ddpm.main, *TRAIN, f"data={few_path}", f"out={tmp_path / 'alone'}",
            "ddpm.train.dropout=0")
    _, stderr = both.communicate(timeout=180)
    assert both.returncode == 0, stderr
    for part in ("model", "ema"):
        one, two = (load_file(tmp_path / out / f"{part}.safetensors") for out in ("alone", "both"))
        for name in one:
            torch.testing.assert_close(one[name], two[name], atol=2e-4, rtol=1e-3)


def test_other_commands_and_learners_refuse_torchrun(monkeypatch):
    import evaluate
    import train_vae

    for key, value in (("WORLD_SIZE", "2"), ("RANK", "0"), ("MASTER_ADDR", "localhost")):
        monkeypatch.setenv(key, value)
    monkeypatch.setattr(distributed, "world", distributed.World)
    outcome = run_command(train_vae.main, "method=vae", "data=digits")
    assert outcome.error == "python train_vae.py runs in one process: start it without torchrun"
    outcome = run_command(evaluate.main, "method=standard", "data=digits")
    assert outcome.error == ("python evaluate.py runs standard in one process: start it without "
                             "torchrun")
