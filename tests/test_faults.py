"""Faults that were seeded, and the tests that found them: so that both stay.

`-m slow` seeds them again, one at a time, in a copy of the code, and runs the named tests there:
each must fail. Always: the line that a fault changes is still there, once, and so are the tests.
Where such a line moves or changes its words, change it here too.
"""

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from conftest import ROOT

COPIED = ("core", "models", "poisons", "purifiers", "learners", "tests", "scripts")
LINKED = ("configs", "results", "docs")


@dataclass(frozen=True)
class Fault:
    what: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]      # file::function, or with [parameters]; each must fail


def fault(what: str, file: str, old: str, new: str, *tests: str) -> Fault:
    return Fault(what, file, old, new, tuple(f"tests/test_{test}" for test in tests))


REM = "rem.py::test_the_outer_loop_is_that_of_the_notes"
KEYS = "contract_keys.py::test_a_key_does_something"
FAULTS = [
    # --- the attacks' outer loops ------------------------------------------------------------
    fault("REM without its learning-rate decay", "poisons/rem.py",
          "config.learning_rate * 0.1 ** (number // config.decay_every)", "config.learning_rate",
          REM, f"{KEYS}[poisons-rem-decay_every]"),
    fault("REM's surrogate sees no adversary", "poisons/rem.py",
          'attacked = attack(x, labels, frozen, config, draw("train/start", x))', "attacked = x",
          REM),
    fault("REM without momentum", "poisons/minmin.py",
          "momentum=config.momentum,", "momentum=0.0,",
          REM, f"{KEYS}[poisons-rem-momentum]"),
    fault("SEM's last pass with REM's adversary", "poisons/rem.py",
          "block_draws(run, rows), inner)", "block_draws(run, rows), attack)",
          f"{REM}[sem]"),
    fault("REM's adversary descends", "poisons/rem.py",
          "steps=config.inner_steps, ascend=True)", "steps=config.inner_steps)",
          "rem.py::test_the_adversary_raises_the_loss_within_its_radius"),
    fault("SEP-FA-VR's correction with the wrong sign", "poisons/sep.py",
          "- (at_x[choice] - mean)", "+ (at_x[choice] - mean)",
          "sep.py::test_seps_crafting_is_the_releases_loop",
          "sep.py::test_variance_reduction_equals_a_plain_loop"),
    fault("TAP's crafting without its transform", "poisons/tap.py",
          "frozen(transform(images, shifts[step], mirrored[step]))", "frozen(images)",
          "tap.py::test_taps_crafting_is_the_releases_loop"),
    fault("TAP's surrogate is trained without its transform", "poisons/tap.py",
          'transform(images, *transform.draw("train", step, images)), labels', "images, labels",
          "tap.py::test_taps_surrogate_is_trained_through_the_attacks_own_transform"),
    fault("HYPO descends on another class", "poisons/hypo.py",
          'targeted=config.variant == "p1"', "targeted=True",
          "hypo.py::test_hypos_crafting_is_the_releases_loop"),
    fault("PIL adds its delta", "poisons/pil.py", "return -pgd(", "return pgd(",
          "pil.py::test_pils_crafting_is_the_releases_loop"),
    fault("DUNE's swarm ends where it is", "poisons/dune.py",
          "    return best\n", "    return position[own_cost.argmin()]\n",
          "dune.py::test_what_the_swarm_returns_is_the_best_that_it_has_seen",
          "dune.py::test_the_attack_is_the_releases_loop[colour]"),
    fault("DUNE's noise leaves the box before the colour", "poisons/dune.py",
          "(images + delta).clamp_(0, 1) - images + colours", "delta + colours",
          "dune.py::test_the_attack_is_the_releases_loop[both]"),
    fault("EM's surrogate is trained on clean images", "poisons/em.py",
          "noised = images + load_noise(delta, rows, run)", "noised = images",
          "em.py::test_the_attack_is_the_notes_loop"),
    fault("EM class-wise crafts on the surrogate of the round before", "poisons/em_classwise.py",
          "        frozen.update(model)\n", "",
          "em.py::test_the_classwise_attack_is_the_notes_loop"),
    # --- the contract ------------------------------------------------------------------------
    fault("the auto-encoders flip the rows of a slice", "purifiers/autoencoding.py",
          "return torch.cat(done)", "return torch.cat(done).flip(0)",
          *(f"contract.py::test_row_i_stays_row_i[purifiers-{name}]"
            for name in ("ae", "vae", "dvae"))),
    fault("diffusion moves every row of a slice one down", "purifiers/walk.py",
          "purified = ((x + 1) / 2).permute(0, 2, 3, 1)",
          "purified = ((x.roll(1, 0) + 1) / 2).permute(0, 2, 3, 1)",
          *(f"contract.py::test_row_i_stays_row_i[purifiers-{name}]" for name in ("ddpm", "jcdp"))),
    fault("tap.flip does nothing", "poisons/tap.py",
          "(drawn[..., 2] < 0.5) & self.config.flip", "drawn[..., 2] < 0.5",
          f"{KEYS}[poisons-tap-flip]"),
    fault("vae.kld_weight does nothing", "purifiers/vae.py",
          "config.kld_weight if target", "0.01 if target",
          f"{KEYS}[purifiers-dvae-train-kld_weight]"),
    fault("a learner's config does not reach the loop", "learners/smoothing.py",
          "standard.fit(train, test, config, run", "standard.fit(train, test, Config(), run",
          f"{KEYS}[learners-smoothing-epochs]", f"{KEYS}[learners-smoothing-learning_rate]"),
    fault("a learner ignores the key that it adds", "learners/smoothing.py",
          "label_smoothing=config.label_smoothing", "label_smoothing=0.1",
          f"{KEYS}[learners-smoothing-label_smoothing]"),
    fault("EM class-wise forgets its noise when it dies", "poisons/em_classwise.py",
          "optimizer=optimizer,\n                noise=noise,", "optimizer=optimizer,",
          "contract_resume.py::test_a_method_that_died_in_its_middle_goes_on"
          "[poisons-em_classwise-half]"),
    # --- learners ----------------------------------------------------------------------------
    fault("AT attacks in train mode", "learners/adversarial.py", "    model.eval()\n", "",
          "adversarial.py::test_the_attack_is_the_formula_image_by_image",
          "adversarial.py::test_each_step_is_taken_where_the_attack_ends"),
    fault("AT thaws what was frozen", "learners/adversarial.py",
          "module.training = was", "module.training = True",
          "adversarial.py::test_the_attack_leaves_the_network_as_it_was"),
    fault("AT descends", "learners/adversarial.py", "ascend=True,", "ascend=False,",
          "adversarial.py::test_the_attack_is_the_formula_image_by_image"),
    fault("a Gaussian start is clipped", "learners/adversarial.py",
          'clip="all" if config.start == "uniform" else "moved"', 'clip="all"',
          "adversarial.py::test_the_attack_is_the_formula_image_by_image"),
    # --- anywhere ----------------------------------------------------------------------------
    fault("the cosine is an epoch ahead", "core/training.py",
          "(now - warm) / (end - warm)", "(now + 1 - warm) / (end - warm)",
          "rates.py::test_cosine_is_torchs_stepped_once_an_epoch"),
    fault("accuracy in training mode", "core/training.py",
          "    model.eval()\n    with", "    with",
          "training.py::test_scoring_uses_running_statistics_and_leaves_them"),
    fault("the test images out of order", "core/training.py",
          "np.array(data.images[rows])", "np.array(data.images[rows][::-1])",
          "training.py::test_scores_are_the_shares_of_right_answers"),
    fault("the crop reaches a pixel short", "core/batches.py",
          "torch.randint(0, 2 * padding + 1,", "torch.randint(0, 2 * padding,",
          "batches.py::test_crops_and_flips_are_uniform_and_new_in_every_epoch"),
    fault("the crop is a pixel off", "core/batches.py",
          "columns) + offsets[:, 1:]", "columns) + offsets[:, 1:] - 1",
          "batches.py::test_augment_is_torchvisions_pad_crop_and_flip"),
    fault("a block of noise for all rows", "core/streams.py",
          "draw(block) for block in range(first, last)", "draw(0) for block in range(first, last)",
          "streams.py::test_rows_get_what_their_block_draws"),
    fault("pixels are truncated", "core/imageset.py",
          "levels.round_() if", "levels.floor_() if",
          "imageset.py::test_rounding_is_to_the_nearest_level_half_to_even"),
    fault("signed steps without the budget", "core/pgd.py",
          "delta = stepped.clamp_(-epsilon, epsilon)", "delta = stepped",
          "pgd.py::test_noise_stays_within_epsilon"),
    fault("grey scale exchanges red and blue", "core/luma.py",
          "19595, 38470, 7471", "7471, 38470, 19595",
          "purifiers.py::test_gray_is_pillows_luma_in_three_channels"),
    fault("TAP aims at the class after the next", "poisons/crafting.py",
          "other_class(clean, 1,", "other_class(clean, 2,",
          "tap.py::test_taps_crafting_is_the_releases_loop"),
    fault("SEP's centroids are not divided by their class", "poisons/sep.py",
          "return total / counts.clamp(min=1)", "return total / counts.sum()",
          "sep.py::test_centroids_are_means_of_eval_mode_features"),
    fault("a class's noise is the mean over all images", "poisons/em_classwise.py",
          "div_(count.clamp(min=1)[:, None])", "div_(len(labels))",
          "em.py::test_means_are_those_of_a_plain_loop"),
    fault("LSP's norm over a part of the image", "poisons/lsp.py",
          "delta.flatten(1).norm(dim=1,", "delta.flatten(1)[:, :96].norm(dim=1,",
          "lsp.py::test_every_perturbation_has_the_l2_norm_of_the_radius"),
    fault("the auto-encoders' gradient is not clipped", "purifiers/autoencoding.py",
          "        nn.utils.clip_grad_norm_(model.parameters(), clip_norm)\n", "",
          "dvae.py::test_the_gradient_is_clipped"),
    fault("Adam with other betas", "purifiers/prior.py",
          "return adam(model, run.device, lr=config.learning_rate)",
          "return adam(model, run.device, lr=config.learning_rate, betas=(0.9, 0.99))",
          "ddpm.py::test_the_optimiser_is_ho_et_als"),
    fault("the VAE's Adam with other betas", "purifiers/vae.py",
          "adam(model, run.device,", "adam(model, run.device, betas=(0.5, 0.999),",
          "vae.py::test_the_vaes_optimiser_is_adam_with_its_usual_constants"),
    fault("the EMA's warm-up is off by one", "purifiers/prior.py",
          "(1 + number) / (10 + number)", "(1 + number) / (11 + number)",
          "ddpm.py::test_a_warm_ema_forgets_its_start"),
    fault("the EMA takes the wrong share", "purifiers/prior.py",
          "    return 1 - decay\n", "    return decay\n",
          "ddpm.py::test_what_an_ema_keeps_of_its_start"),
    fault("x_0 is not clamped", "purifiers/diffusion.py",
          "return x0.clamp_(-1, 1) if clamp else x0", "return x0",
          "ddpm.py::test_purification_is_a_plain_loop"),
    fault("JCDP's passes share their noise", "purifiers/walk.py",
          'run.stream(f"pass{number}/{kind}{t}"', 'run.stream(f"pass0/{kind}{t}"',
          "jcdp.py::test_passes_share_no_noise"),
    fault("JCDP is held to the image without its noise", "purifiers/jcdp.py",
          "target = schedule.noised(y, jump.t, noise)", "target = y",
          "jcdp.py::test_the_released_guidance"),
    fault("the second hinge comes in an epoch late", "purifiers/dvae.py",
          "epoch >= config.p_hat_start", "epoch > config.p_hat_start",
          "dvae.py::test_the_loss_is_the_released_one"),
    fault("the KLD is a mean over channels", "models/dvae.py",
          "mean = mu.square().mean() + logvar", "mean = mu.square().mean() / mu.shape[1] + logvar",
          "models.py::test_kl_divergence_values"),
]
IDS = [fault.what.replace(" ", "-") for fault in FAULTS]


@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_is_still_one(fault):
    assert (ROOT / fault.file).read_text().count(fault.old) == 1, f"{fault.file}: {fault.old}"
    for test in fault.tests:
        file, _, function = test.partition("[")[0].partition("::")
        assert f"def {function}(" in (ROOT / file).read_text()


@pytest.fixture(scope="module")
def copy(tmp_path_factory) -> Path:
    """The code, to be spoilt."""
    place = tmp_path_factory.mktemp("faults") / "copy"
    place.mkdir()
    for path in (*ROOT.glob("*.py"), ROOT / "pyproject.toml", ROOT / "README.md"):
        shutil.copy(path, place)
    for name in COPIED:
        shutil.copytree(ROOT / name, place / name,
                        ignore=shutil.ignore_patterns("__pycache__", ".*"))
    for name in LINKED:
        (place / name).symlink_to(ROOT / name)
    return place


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS, ids=IDS)
def test_a_fault_fails_a_test(fault, copy):
    sound = (copy / fault.file).read_text()
    (copy / fault.file).write_text(sound.replace(fault.old, fault.new))
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-p", "no:xdist", "-p", "no:cacheprovider", "-rfE",
             "-m", "slow or not slow", *fault.tests],
            cwd=copy, capture_output=True, text=True, check=False,
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONDONTWRITEBYTECODE": "1"})
    finally:
        (copy / fault.file).write_text(sound)
    assert done.returncode == 1, done.stdout + done.stderr
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    for test in fault.tests:
        assert any(name.startswith(test) for name in failed), f"{test} passed:\n{done.stdout}"
