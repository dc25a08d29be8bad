"""What an inspection prints and draws."""

import numpy as np
import pytest
from conftest import as_set, run_command

from core.perturbation import measure
from scripts.pictures import inspect_poison, style


def test_an_inspection_prints_and_draws(tmp_path):
    from poisons.__main__ import main as poison_main

    poison = run_command(poison_main, "method=ops", "data=digits").path
    outcome = run_command(inspect_poison.main, poison, "--out", tmp_path / "ops.png")
    assert outcome.status == 0, outcome.stderr
    assert (tmp_path / "ops.png").read_bytes()[:4] == b"\x89PNG"
    lines = {line[:22].strip(): line[22:].strip() for line in outcome.stdout.splitlines()[1:]}
    assert lines["L0 (most)"] == "1 pixels"
    assert float(lines["nearest class mean"].split("%")[0]) > 95
    beside = run_command(inspect_poison.main, poison, "digits", "--out", tmp_path / "other.png")
    assert beside.stdout == outcome.stdout          # CLEAN is what data= takes
    (tmp_path / "folder").mkdir()
    assert "is no regular file" in run_command(inspect_poison.main, poison, "--out",
                                               tmp_path / "folder").error
    same = run_command(inspect_poison.main, poison, poison)
    assert "does not differ from the set it is compared with" in same.error
    clean = run_command(inspect_poison.main, "digits")
    assert clean.error.startswith("digits does not differ from the set it is compared with: name ")


def test_the_spectrum_of_a_wave():
    """A cosine of 4 periods in 16 pixels has all its power at a quarter cycle a pixel."""
    wave = np.cos(2 * np.pi * 4 * np.arange(16) / 16)
    images = np.broadcast_to(wave[None, None, :, None], (3, 16, 16, 3))
    radius, power = inspect_poison.radial([images])
    assert radius[power.argmax()] == 0.25
    assert power.max() == pytest.approx(1)


@pytest.fixture
def pair():
    """Noise of which everything is known: that of class 0 is one wave of a quarter cycle a pixel,
    in red only; that of class 1 one whose sign changes from image to image, so its mean is 0."""
    wave = np.rint(8 * np.cos(2 * np.pi * np.arange(16) / 4))[None, None, :]
    signs = np.where(np.arange(40) % 4 == 3, -1, 1)[:, None, None]
    delta = np.zeros((40, 16, 16, 3))
    delta[..., 0] = signs * wave
    clean = np.random.default_rng(0).integers(40, 200, delta.shape).astype(np.uint8)
    labels = np.arange(40) % 2
    return as_set(clean, labels), as_set((clean + delta).astype(np.uint8), labels), delta


def test_the_numbers_of_a_poison_that_is_known(pair, capsys):
    """Half of the power, that of class 0, is the class's own; eight classes have no image."""
    clean, poison, delta = pair
    assert clean.num_classes == 10
    spectra = inspect_poison.Spectra.of(clean, poison)
    means = inspect_poison.class_means(clean, poison)
    assert means[0] == pytest.approx(delta[0])
    assert not means[1].any()
    inspect_poison.print_summary("set", poison, clean, measure(clean, poison), spectra, means)
    lines = {line[:22].strip(): line[22:].strip()
             for line in capsys.readouterr().out.splitlines()[1:]}
    assert lines["shared by the class"] == "50.0% of the power"
    assert lines["power by frequency"] == "low 0%, middle 0%, high 100%"
    assert lines["pixels changed"] == "50.0%"           # two zeros in a period of four
    assert lines["PSNR"] == f"{10 * np.log10(255**2 / (32 / 3)):.2f} dB"


def test_the_bands_share_all_the_power():
    """White noise: of 16 x 16 frequencies, those in each band."""
    rng = np.random.default_rng(0)
    radius, power = inspect_poison.radial([rng.normal(size=(500, 16, 16, 3))])
    spectra = inspect_poison.Spectra(radius, power, power)
    shares = [spectra.share(low, high) for _, low, high in inspect_poison.BANDS]
    assert sum(shares) == pytest.approx(1)
    steps = np.rint(np.hypot(*np.meshgrid(*2 * [np.fft.fftfreq(16) * 16])))
    expected = [(steps < 2).mean(), ((steps >= 2) & (steps < 4)).mean(), (steps >= 4).mean()]
    assert shares == pytest.approx(expected, rel=0.05)


def test_the_histogram_of_a_poison_that_is_known(pair):
    """Red has -8, 0 and 8 as often as the wave; the others are never changed."""
    clean, poison, _ = pair
    axis = style.sheet(3).subplots()
    inspect_poison.show_histogram(axis, clean, poison)
    lines = {line.get_label(): line for line in axis.lines}
    assert [lines[name].get_color() for name in ("red", "green", "blue")] == \
        [style.RED, style.GREEN, style.BLUE]
    shares = {name: {float(x): y for x, y in line.get_xydata() if y == y}
              for name, line in lines.items()}
    assert shares == {"red": {-8: 0.25, 0: 0.5, 8: 0.25}, "green": {0: 1}, "blue": {0: 1}}
