"""What only a CUDA device shows: `bash scripts/test.sh -m cuda`. The other tests never see one."""

import numpy as np
import pytest
import torch
from conftest import ROOT, content, process, run_command, succeed
from methods import clean_keys, needed_paths

import core.run
import evaluate
import purify
import train_ddpm
import train_vae
from core import batches, graphs
from core.device import DeviceSettings, resolve
from core.methods import list_methods
from models.resnet import resnet18
from poisons.__main__ import main as poison_main
from poisons.frozen import FrozenSurrogate
from scripts.bench.scratch import scratch_run

DEVICE = "cuda"
pytestmark = [pytest.mark.cuda,
              pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]
PRIOR = ["method=ddpm", f"device={DEVICE}", "ddpm.train.width=32", "ddpm.train.batch_size=32",
         "ddpm.train.steps=60", "ddpm.train.multipliers=[1, 1]", "ddpm.train.attention=[8]",
         "ddpm.train.warmup_steps=5", "ddpm.train.learning_rate=1e-3", "ddpm.train.flip=false",
         "ddpm.train.sample_every=0"]
JCDP = ["method=jcdp", f"device={DEVICE}", "jcdp.sampler=subsampled", "jcdp.lpips_net=squeeze",
        "jcdp.lpips_resize=32", "jcdp.batch_size=200"]


@pytest.fixture(scope="module")
def prior(few_path, tmp_path_factory):
    return succeed(train_ddpm.main, *PRIOR, f"data={few_path}",
                   f"out={tmp_path_factory.mktemp('cuda') / 'prior'}")


def levels(folder) -> np.ndarray:
    return np.load(folder / "images.npy").astype(int)


@pytest.mark.parametrize("name", [name for name in list_methods("poisons")
                                  if not needed_paths("poisons", name)])
def test_every_attack(few_path, name):
    """In TF32; --smoke does not compile."""
    outcome = run_command(poison_main, f"method={name}", f"data={few_path}", "--smoke",
                          f"device={DEVICE}")
    assert outcome.status == 0, outcome.stderr


@pytest.mark.parametrize("name", ["em", "tap", "rem"])
def test_deterministic_runs_repeat(few_path, tmp_path, name):
    one, two = (succeed(poison_main, f"method={name}", f"data={few_path}", "--smoke",
                        f"device={DEVICE}", "deterministic=true", f"out={tmp_path / out}")
                for out in ("one", "two"))
    assert content(one) == content(two)


def test_a_streamed_set_gives_the_batches_of_one_that_lies_on_the_device(tmp_path, few,
                                                                         monkeypatch):
    monkeypatch.setattr(batches, "STREAMED", 0)
    with scratch_run(resolve(DeviceSettings(device=DEVICE))) as run:
        resident, streamed = (
            batches.Batches(few, 32, run, "test", augmentation=batches.Augmentation(2, True),
                            resident=where).epoch(1, 2) for where in (True, False))
        for (a, la), (b, lb) in zip(resident, streamed, strict=True):
            torch.cuda._sleep(10**7)        # a step that is at work while the next ones are copied
            assert torch.equal(a, b)
            assert torch.equal(la, lb)


def test_gradients_are_the_cpus():
    """In float32 all but the smallest have one sign."""
    torch.manual_seed(0)
    model, images = resnet18(10, 8).eval(), torch.rand(64, 3, 32, 32)
    labels = torch.arange(64) % 10
    found = []
    for device in ("cpu", DEVICE):
        resolved = resolve(DeviceSettings(device, precision="fp32", compile="false"))
        frozen = FrozenSurrogate(model, resolved)
        found.append(frozen.gradient(labels.to(device))(images.to(device), 0).cpu())
    large = found[0].abs() > found[0].abs().median()
    assert (found[0].sign() == found[1].sign())[large].float().mean() > 0.999


def test_bf16_purifies_as_fp32_does(prior, few_path, tmp_path):
    """Below half a grey level of difference (root mean square), for the same noise."""
    sets = [levels(succeed(purify.main, *JCDP, f"data={few_path}", f"checkpoint={prior}",
                           f"precision={precision}", f"out={tmp_path / precision}"))
            for precision in ("bf16", "fp32")]
    assert np.sqrt(np.square(sets[0] - sets[1]).mean()) < 0.5


def test_compiling_changes_next_to_nothing(prior, few_path, tmp_path):
    """The last slice of 320 rows by 200 is padded."""
    sets = [levels(succeed(purify.main, *JCDP, f"data={few_path}", f"checkpoint={prior}",
                           "precision=fp32", f"compile={compiled}", f"out={tmp_path / compiled}"))
            for compiled in ("true", "false")]
    assert np.abs(sets[0] - sets[1]).max() <= 2
    assert (sets[0] != sets[1]).mean() < 1e-2


@pytest.mark.parametrize("name", list_methods("learners"))
def test_every_learner(few_path, tmp_path, name):
    """In bf16; --smoke does not compile."""
    succeed(evaluate.main, f"method={name}", f"data={few_path}", "--smoke", f"device={DEVICE}",
            *clean_keys(name, few_path), f"out={tmp_path / 'record'}")


def test_training_and_scoring(few_path, tmp_path):
    trained = succeed(train_vae.main, "method=dvae", f"data={few_path}", "--smoke",
                      f"device={DEVICE}", f"out={tmp_path / 'dvae'}")
    purified = succeed(purify.main, "method=dvae", f"data={few_path}", f"checkpoint={trained}",
                       "--smoke", f"device={DEVICE}", f"out={tmp_path / 'purified'}")
    succeed(evaluate.main, "method=standard", f"data={purified}", "--smoke", f"device={DEVICE}",
            f"out={tmp_path / 'record'}")


TRAININGS = {
    "classifier": (evaluate.main, ["method=standard", "--smoke", "keep_network=true",
                                   "standard.drop_last=false"]),
    "dvae": (train_vae.main, ["method=dvae", "--smoke"]),
    "ae": (train_vae.main, ["method=ae", "--smoke"]),
    "ddpm": (train_ddpm.main, PRIOR)}


def train(name, few_path, out, *words):
    command, own = TRAININGS[name]
    return run_command(command, *own, f"data={few_path}", f"device={DEVICE}", f"out={out}",
                       "deterministic=true", *words)


@pytest.mark.parametrize("name", TRAININGS)
def test_a_recorded_step_gives_the_bytes_of_the_plain_one(few_path, tmp_path, name):
    """320 images in batches of 128: the classifier's last one is short."""
    made = []
    for recorded in ("true", "false"):
        outcome = train(name, few_path, tmp_path / recorded, f"graphs={recorded}", "compile=false")
        assert outcome.status == 0, outcome.stderr
        made.append(content(outcome.path))
    assert made[0] == made[1]


@pytest.mark.parametrize("name", TRAININGS)
def test_a_recorded_run_resumes(few_path, tmp_path, monkeypatch, name):
    """DDPM's compiled; stopped after a step, with the step before it saved."""
    monkeypatch.setattr(core.run, "SAVE_SECONDS", 0)
    whole = train(name, few_path, tmp_path / "whole")
    assert whole.status == 0, whole.stderr
    calls, call = [], graphs.Recorded.__call__

    def dying(self, *inputs):
        calls.append(0)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return call(self, *inputs)

    monkeypatch.setattr(graphs.Recorded, "__call__", dying)
    assert train(name, few_path, tmp_path / "resumed").status != 0
    resumed = train(name, few_path, tmp_path / "resumed")
    assert resumed.status == 0, resumed.stderr
    assert content(resumed.path) == content(whole.path)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are no two CUDA devices")
def test_two_devices_train_on_the_batch_of_one(few_path, tmp_path, prior):
    both = process(ROOT / "train_ddpm.py", *PRIOR, f"data={few_path}", f"out={tmp_path / 'both'}",
                   ranks=2, torchrun=True)
    _, stderr = both.communicate(timeout=600)
    assert both.returncode == 0, stderr
    assert content(tmp_path / "both").keys() == content(prior).keys()
