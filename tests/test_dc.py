"""DC: the noise of its released generator, of which a test makes a file."""

import numpy as np
import pytest
import torch
from attacks import config_by
from conftest import ROOT, as_floats, content, run_command, succeed, write_imageset
from methods import generator_beside
from test_gue import plain_unet

from poisons import dc
from poisons.__main__ import main as poison_main

LINE = ["method=dc", "out=out"]


@pytest.mark.parametrize(("preset", "epsilon"), [([], 0.032), (["preset=apbench"], 8 / 255)])
def test_the_released_generator_makes_the_noise(preset, epsilon, few_path, few, tmp_path):
    file = generator_beside(tmp_path / "clean")
    out = succeed(poison_main, ROOT / "configs/poisons/dc.yaml", *preset, f"data={few_path}",
                  f"dc.weights={file}", "out=out", "--limit", "20")
    images = as_floats(few.images[:20])
    with torch.no_grad():
        made = images + epsilon * plain_unet(torch.load(file, weights_only=True), images)
    levels = made.permute(0, 2, 3, 1).clamp(0, 1).numpy() * 255
    assert np.abs(np.load(out / "images.npy") - levels).max() < 0.5 + 1e-3
    assert np.abs(levels - few.images[:20]).max() > 0.7 * 255 * epsilon


def test_a_file_without_batch_norms_counts_makes_the_same(few_path, tmp_path):
    """As torch before 0.4.1 wrote them; torch loads it too."""
    file = generator_beside(tmp_path / "clean")
    weights = torch.load(file, weights_only=True)
    short = {name: tensor for name, tensor in weights.items()
             if not name.endswith("num_batches_tracked")}
    assert len(short) == len(weights) - 15
    torch.save(short, tmp_path / "short.pth")
    made = [content(succeed(poison_main, "method=dc", f"data={few_path}", f"dc.weights={weights}",
                            f"out={tmp_path / weights.stem}", "--limit", "20"))
            for weights in (file, tmp_path / "short.pth")]
    assert made[0] == made[1]


def test_what_cannot_be_is_one_sentence(few_path, tmp_path, images, labels):
    file = generator_beside(tmp_path / "clean")
    odd = write_imageset(tmp_path / "odd", images[:, :12], labels)
    for words, said in (
            ([f"data={few_path}"], "dc.weights: name a folder, or a file"),
            ([f"data={few_path}", "dc.weights=nowhere"], "dc.weights: nowhere"),
            ([f"data={few_path}", f"dc.weights={few_path}"], f"{few_path} is no regular file"),
            ([f"data={odd}", f"dc.weights={file}"], "dc: images of 12x16 pixels do not fit the")):
        outcome = run_command(poison_main, *LINE, *words)
        assert outcome.status == 1
        assert outcome.error.startswith(said), outcome.error


def test_values_are_the_releases():
    assert config_by("dc") == dc.Config(epsilon=0.032, rounding="round")
