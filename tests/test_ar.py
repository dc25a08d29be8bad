"""AR: the recurrence against a plain raster loop, and the facts of its coefficients."""

import csv

import numpy as np
import pytest
import torch
from conftest import ROOT, run_command, succeed, write_imageset

from core.streams import BLOCK, generator
from poisons import ar
from poisons.__main__ import main as poison_main


class OwnStreams:
    """What `find` and `coefficients` need of a run."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def stream(self, name: str, step: int = 0):
        return generator(self.seed, name, step)

    def say(self, text: str) -> None:
        pass


@pytest.fixture(params=(10, 100))
def processes(request) -> np.ndarray:
    return ar.coefficients(request.param, ar.Config(), OwnStreams(0)).numpy()


def noise(count: int, height: int = 36, width: int = 36) -> tuple[torch.Tensor, torch.Tensor]:
    random = torch.Generator().manual_seed(0)
    return (torch.randn(3, 2, width, count, generator=random, dtype=torch.float64),
            torch.randn(3, height - 2, 2, count, generator=random, dtype=torch.float64))


def raster(window: np.ndarray, top: np.ndarray, left: np.ndarray) -> np.ndarray:
    """The recurrence as the release writes it, number by number: (3, H, W)."""
    signal = np.zeros((3, 2 + left.shape[1], top.shape[2]))
    signal[:, :2], signal[:, 2:, :2] = top, left
    for c in range(3):
        for i in range(signal.shape[1] - 2):
            for j in range(signal.shape[2] - 2):
                signal[c, i + 2, j + 2] = sum(
                    window[c, u, v] * signal[c, i + u, j + v]
                    for u in range(3) for v in range(3) if (u, v) != (2, 2))
    return signal


@pytest.mark.parametrize("shape", [(36, 36), (12, 20)])
def test_signals_equal_a_plain_loop(processes, shape):
    top, left = noise(3, *shape)
    for window in processes[:3]:
        grown = ar.grow(torch.from_numpy(window), top, left).numpy()
        for n in range(3):
            expected = raster(window, top[..., n].numpy(), left[..., n].numpy())
            np.testing.assert_allclose(grown[..., n], expected, rtol=1e-9, atol=1e-9)


def test_the_coefficients(processes):
    """The release's; class 3's green row retyped from the table."""
    np.testing.assert_allclose(processes.sum((2, 3)), 1, atol=2e-4)
    assert (processes[:, :, 2, 2] == 0).all()
    if len(processes) == 10:
        np.testing.assert_array_equal(
            processes[3, 1].reshape(-1),
            [.1246, .3024, .2110, .0538, .1997, .3283, .0372, -.2570, 0])
    with open(ROOT / "poisons" / "ar_coefficients.csv") as file:
        assert sum(1 for _ in csv.reader(file)) == 1 + 3 * 110


def test_a_matched_filter_tells_the_classes():
    """Its own signals leave a class's filter at rest, the others' do not."""
    processes = ar.coefficients(10, ar.Config(), OwnStreams(0))
    responses = np.empty((10, 10))
    for one in range(10):
        signal = ar.grow(processes[one], *noise(5))[:, 4:, 4:].permute(3, 0, 1, 2)
        signal = signal / signal.flatten(1).norm(dim=1)[:, None, None, None]
        for other in range(10):
            matched = processes[other].clone()
            matched[:, 2, 2] = -1
            values = torch.nn.functional.conv2d(signal, matched[None]).abs().amax((1, 2, 3))
            responses[one, other] = values.max() if one == other else values.min()
    assert responses.diagonal().max() < 1e-6
    assert responses[~np.eye(10, dtype=bool)].min() > 1e-2


def poisoned(tmp_path, images: np.ndarray, *words) -> np.ndarray:
    labels = np.arange(len(images)) % 10
    source = write_imageset(tmp_path / "grey", images, labels)
    out = succeed(poison_main, "method=ar", f"data={source}", *words)
    return np.load(out / "images.npy").astype(float) - images


@pytest.mark.parametrize(("words", "measure"), [
    ((), lambda delta: np.sqrt((delta**2).sum((1, 2, 3))) / 255),
    (("ar.norm=linf", "ar.radius=8/255"), lambda delta: np.abs(delta).max((1, 2, 3)) / 8)])
def test_the_norm_and_the_processes_reach_the_pixels(tmp_path, words, measure):
    """On mid-grey images nothing clips, and rounding is all that comes between."""
    images = np.full((300, 32, 32, 3), 128, np.uint8)
    delta = poisoned(tmp_path, images, *words)
    np.testing.assert_allclose(measure(delta), 1, atol=0.02)
    assert not np.array_equal(delta[0], delta[10])          # same class, noise of its own
    processes = ar.coefficients(10, ar.Config(), OwnStreams(0)).numpy()
    guesses = []
    for image in delta[::7].transpose(0, 3, 1, 2):
        windows = np.lib.stride_tricks.sliding_window_view(image, (3, 3), (1, 2))
        own = (np.einsum("cijuv,kcuv->kcij", windows, processes) - windows[None, ..., 2, 2])
        guesses.append(np.square(own).mean((1, 2, 3)).argmin())
    assert np.mean(np.array(guesses) == np.arange(300)[::7] % 10) > 0.9


def test_the_pixels_are_the_end_of_a_signal(tmp_path):
    """Its first `crop` rows and columns are dropped, where it still has its start's size."""
    images = np.full((20, 32, 32, 3), 128, np.uint8)
    delta = poisoned(tmp_path, images)
    streams = OwnStreams(0)
    top, left = (torch.randn(BLOCK, *shape, generator=streams.stream(f"ar/{name}", 0),
                             dtype=torch.float64).numpy()
                 for name, shape in (("top", (3, 2, 36)), ("left", (3, 34, 2))))
    processes = ar.coefficients(10, ar.Config(), streams).numpy()
    for row in (0, 13):
        signal = raster(processes[row % 10], top[row], left[row])[:, 4:, 4:]
        expected = 255 * ar.Config().radius * signal / np.linalg.norm(signal)
        assert np.abs(delta[row].transpose(2, 0, 1) - expected).max() < 0.51


@pytest.mark.parametrize(("count", "least"), [(7, 10), (12, 3)])
def test_the_finder_makes_processes_that_differ(count, least):
    found = ar.find(count, OwnStreams(1))
    assert found.shape == (count, 3, 3, 3)
    np.testing.assert_allclose(found.sum((2, 3)), 1, atol=1e-9)
    assert (found[..., 2, 2] == 0).all()
    for i, window in enumerate(found):
        signal = ar.grow(window, *noise(8)).permute(3, 0, 1, 2)
        norms = signal.flatten(1).norm(dim=1)
        assert norms.median() < 60
        signal = signal / norms[:, None, None, None]
        own = torch.nn.functional.conv2d(signal, ar.as_filter(window))
        assert own.abs().max() < 1e-9
        for earlier in found[:i]:           # the release looks in this direction only
            framed = torch.nn.functional.pad(signal, (2, 2, 2, 2))
            foreign = sum(
                (earlier[c, u, v] - int(u == v == 2)) * framed[:, c, u : u + 38, v : v + 38]
                for c in range(3) for u in range(3) for v in range(3))
            assert foreign.relu().sum((1, 2)).median() > 0.8 * least


@pytest.mark.parametrize("crop", [0, 4])
def test_a_process_counts_if_all_of_its_three_signals_stay_small(crop):
    """Some have one signal of norm 50 or less and another above."""
    found = list(ar.small_processes(OwnStreams(1).stream("ar/find", 0), crop))
    random = OwnStreams(1).stream("ar/find", 0)
    windows = torch.randn(256 * 3, 9, generator=random, dtype=torch.float64)
    windows[:, 8] = 0
    windows = (windows / windows.sum(1, keepdim=True)).view(256, 3, 3, 3)
    top, left = (torch.randn(256 * 3, *shape, 3, generator=random, dtype=torch.float64)
                 for shape in ((2, 36), (34, 2)))
    grown = ar.grow(windows.flatten(0, 1), top, left)[:, crop:, crop:]
    small, mixed = [], 0
    for i, window in enumerate(windows):
        signals = grown[3 * i : 3 * i + 3].movedim(-1, 0)
        norms = signals.flatten(1).norm(dim=1)
        mixed += bool((norms <= 50).any() and not (norms <= 50).all())
        if (norms <= 50).all():
            small.append((window, signals / norms[:, None, None, None]))
    assert mixed
    assert len(found) == len(small) > 1
    for (window, signals), (same, expected) in zip(found, small, strict=True):
        assert torch.equal(window, same)
        torch.testing.assert_close(signals, expected)


def test_the_releases_finder_takes_the_last_signal_cropped_without_a_border():
    """Its test of each process that it takes, typed again; ours takes other ones."""
    least, found = 10, ar.find(3, OwnStreams(4), "released")
    assert found.shape == (3, 3, 3, 3)
    assert not torch.equal(found, ar.find(3, OwnStreams(4)))
    taken, tried = [], 0
    while len(taken) < 3:
        random = OwnStreams(4).stream("ar/find", tried)
        windows = torch.randn(256 * 3, 9, generator=random, dtype=torch.float64)
        windows[:, 8] = 0
        windows = (windows / windows.sum(1, keepdim=True)).view(-1, 3, 3)
        top, left = (torch.randn(256 * 3, *shape, 3, generator=random, dtype=torch.float64)
                     for shape in ((2, 36), (34, 2)))
        grown = ar.grow(windows, top, left)[:, 4:, 4:].unflatten(0, (256, 3)).movedim(-1, 1)
        for window, signals in zip(windows.unflatten(0, (256, 3)), grown, strict=True):
            if len(taken) == 3:
                break
            norms = [signal.norm() for signal in signals]
            if not all(norm <= 50 for norm in norms):
                continue
            responses = [torch.nn.functional.conv2d((signals[-1] / norms[-1])[None],
                                                    ar.as_filter(earlier)).relu().sum()
                         for earlier in taken]
            if not taken or min(responses) >= least:
                taken.append(window)
        tried += 256
    torch.testing.assert_close(found, torch.stack(taken))


def test_the_published_coefficients_keep_to_the_finders_thresholds(processes):
    """Which they hardly do with other paddings, or on cropped signals: 10 for ten classes, 3 for a
    hundred, each signal against the filters before it."""
    least = 10 if len(processes) == 10 else 3
    filters = torch.cat([ar.as_filter(torch.from_numpy(window)) for window in processes])
    low = []
    for later in range(1, len(processes), 1 + len(processes) // 20):
        signal = ar.grow(torch.from_numpy(processes[later]), *noise(3)).permute(3, 0, 1, 2)
        signal = signal / signal.flatten(1).norm(dim=1)[:, None, None, None]
        low.append((ar.responses(signal, filters[:later]) < least).flatten())
    assert torch.cat(low).double().mean() < 0.03


def test_class_counts_without_coefficients(tmp_path):
    images = np.full((60, 16, 16, 3), 128, np.uint8)
    source = write_imageset(tmp_path / "few", images, np.arange(60) % 3, classes=3)
    outcome = run_command(poison_main, "method=ar", f"data={source}", "ar.coefficients=table")
    assert outcome.status == 1
    assert "ar.coefficients: the table has 10 and 100 classes, not 3; write find" in outcome.stderr
    succeed(poison_main, "method=ar", f"data={source}")


def test_linf_needs_a_radius_of_its_own(few_path):
    outcome = run_command(poison_main, "method=ar", f"data={few_path}", "ar.norm=linf")
    assert "ar.radius: 1 is no linf radius; write 8/255" in outcome.error
