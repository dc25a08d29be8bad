"""Minibatches: permutations, crops and flips against plain loops, resume, last batches, sets that
are streamed."""

import threading

import numpy as np
import pytest
import torch
from conftest import as_set, new_run
from torchvision.transforms import functional as tv

from core import batches as batches_of
from core.batches import Augmentation, Batches, ahead, augment, order_of_blocks
from core.errors import UserError
from core.views import Views, apply, draw


@pytest.fixture
def numbered():
    """100 images whose pixels all tell their row, labels row % 10."""
    rows = np.arange(100)
    pixels = np.broadcast_to(rows[:, None, None, None].astype(np.uint8), (100, 6, 6, 3)).copy()
    return as_set(pixels, rows % 10)


@pytest.fixture
def run(tmp_path):
    with new_run(tmp_path / "out", seed=3) as run:
        yield run


def rows_of(images: torch.Tensor) -> list[int]:
    return (images[:, 0, 0, 0] * 255).round().long().tolist()


def walk(batches: Batches, epoch: int, start: int = 0) -> list[list[int]]:
    return [rows_of(images) for images, _ in batches.epoch(epoch, start)]


def test_an_epoch_visits_every_row_once_with_its_label(run, numbered):
    batches = Batches(numbered, 20, run, "test")
    seen = []
    for images, labels in batches.epoch(0):
        assert images.shape == (20, 3, 6, 6)
        assert images.dtype == torch.float32
        assert images.is_contiguous(memory_format=torch.channels_last)
        assert [row % 10 for row in rows_of(images)] == labels.tolist()
        seen += rows_of(images)
    assert sorted(seen) == list(range(100))
    assert seen != list(range(100))


def test_pixels_are_divided_by_255_exactly(run, images, labels):
    data = as_set(images, labels)
    given = {image.tobytes() for image in (images.astype(np.float32) / np.float32(255))}
    for floats, _ in Batches(data, 30, run, "test").epoch(0):
        for image in floats.permute(0, 2, 3, 1).contiguous().numpy():
            assert image.tobytes() in given


def test_every_epoch_is_another_permutation_of_the_same_seed(tmp_path, numbered):
    def orders(seed, name="test"):
        with new_run(tmp_path / f"{seed}{name}", seed=seed) as run:
            batches = Batches(numbered, 50, run, name)
            return [walk(batches, epoch) for epoch in range(3)]

    first = orders(0)
    assert first[0] != first[1] != first[2] != first[0]
    assert orders(1) != first != orders(0, "other")
    with new_run(tmp_path / "again", seed=0) as run:        # in any order, and drawn alone
        assert walk(Batches(numbered, 50, run, "test"), 2) == first[2]


def test_an_epoch_can_start_in_its_middle(run, images, labels):
    data = as_set(images, labels)
    batches = Batches(data, 7, run, "test", augmentation=Augmentation(2, True))
    whole = list(batches.epoch(4))
    for start in (0, 3, 7, 8):
        rest = list(batches.epoch(4, start))
        assert len(rest) == len(whole) - start
        for (a, la), (b, lb) in zip(rest, whole[start:], strict=True):
            assert torch.equal(a, b)
            assert torch.equal(la, lb)


@pytest.mark.parametrize(("rows", "size", "drop_last", "sizes"), [
    (100, 30, True, [30, 30, 30]), (100, 30, False, [30, 30, 30, 10]),
    (100, 33, True, [33, 33, 33]), (100, 33, False, [33, 33, 33]),      # a last one of one image
    (100, 100, True, [100]), (60, 100, False, [60]), (100, 25, False, [25] * 4),
])
def test_last_batches(run, numbered, rows, size, drop_last, sizes):
    batches = Batches(numbered.first(rows), size, run, "test", drop_last=drop_last)
    assert [len(batch) for batch in walk(batches, 0)] == sizes
    assert len(batches) == len(sizes)


@pytest.mark.parametrize(("rows", "size", "drop_last", "said"), [
    (60, 61, True, "60 rows, too few for a batch of 61: lower batch_size"),
    (1, 2, False, "the set has one image, and training needs two")])     # no key helps
def test_too_few_rows_for_a_batch(run, numbered, rows, size, drop_last, said):
    with pytest.raises(UserError, match=said):
        Batches(numbered.first(rows), size, run, "test", drop_last=drop_last)


def test_a_protocol_that_counts_steps_ends_in_the_middle_of_an_epoch(run, numbered):
    batches = Batches(numbered, 10, run, "test", last_step=23)
    assert [len(walk(batches, epoch)) for epoch in range(3)] == [10, 10, 3]
    assert walk(batches, 2) == walk(Batches(numbered, 10, run, "test"), 2)[:3]


# --- sets that are streamed ------------------------------------------------------------------


@pytest.fixture
def mapped(tmp_path, images, labels):
    """A set in a memory map."""
    np.save(tmp_path / "images.npy", images)
    return as_set(np.load(tmp_path / "images.npy", mmap_mode="r"), labels)


@pytest.mark.parametrize("given", [{}, {"shuffle_block": 8}, {"shuffle": False}])
@pytest.mark.parametrize("rows", [None, [9, 3, 4, 30, 31, 59] * 5])
def test_where_a_set_lies_changes_no_batch(run, mapped, monkeypatch, given, rows):
    """In memory, in a memory map read by a thread, or chosen rows of one that are not copied."""
    given |= {"augmentation": Augmentation(2, True), "drop_last": False}
    chosen = mapped if rows is None else mapped.subset(np.array(rows), "rows")
    there = as_set(np.array(chosen.images), chosen.labels)
    expected = list(Batches(there, 7, run, "test", **given).epoch(2))
    monkeypatch.setattr(batches_of, "STREAMED", 0)
    monkeypatch.setattr("core.gathered.COPIED", 0)
    chosen = mapped if rows is None else mapped.subset(np.array(rows), "rows")
    streamed = Batches(chosen, 7, run, "test", **given)
    for start in (0, 3):
        found = list(streamed.epoch(2, start))
        assert len(found) == len(expected) - start
        for (a, la), (b, lb) in zip(found, expected[start:], strict=True):
            assert torch.equal(a, b)
            assert torch.equal(la, lb)


def test_the_thread_reads_ahead_in_order_and_no_further():
    asked, free = [], threading.Semaphore(0)

    def read(item):
        asked.append(item)
        free.release()
        return lambda: item

    found = ahead(read, iter(range(100)))
    assert next(found) == 0
    for _ in range(batches_of.AHEAD + 1):
        assert free.acquire(timeout=10)
    assert asked == [0, 1, 2]
    assert list(found) == list(range(1, 100))


def test_what_the_thread_meets_is_raised_where_the_batch_is_wanted():
    def read(item):
        if item == 2:
            raise UserError("a disk that fails")
        return lambda: item

    found = ahead(read, range(5))
    assert [next(found), next(found)] == [0, 1]
    with pytest.raises(UserError, match="a disk that fails"):
        next(found)


def test_a_loop_that_stops_in_the_middle_leaves_no_thread():
    found = ahead(lambda item: lambda: item, range(100))
    next(found)
    found.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("reader")]


@pytest.mark.parametrize(("rows", "block"), [(1008, 7), (1024, 64), (30, 100), (5, 1)])
def test_blocks_are_shuffled_and_mixed_within_windows(rows, block):
    def order(seed):
        return order_of_blocks(rows, block, torch.Generator().manual_seed(seed)).tolist()

    found = order(0)
    assert sorted(found) == list(range(rows))
    assert found == order(0) != order(1)
    window = batches_of.WINDOW * block
    for start in range(0, rows, window):        # no more blocks than fit, each of them whole
        part = found[start : start + window]
        assert len({row // block for row in part}) == -(-len(part) // block)
        assert part != sorted(part)


# --- crop and flip ---------------------------------------------------------------------------


@pytest.mark.parametrize("padding", [1, 4, 9])
@pytest.mark.parametrize("shape", [(8, 8), (5, 9)])
def test_augment_is_torchvisions_pad_crop_and_flip(padding, shape):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, *shape, 3), dtype=torch.uint8, generator=generator)
    offsets = torch.randint(0, 2 * padding + 1, (40, 2), generator=generator)
    mirrored = torch.rand(40, generator=generator) < 0.5
    before = images.clone()
    found = augment(images, offsets, mirrored, padding=padding)
    assert torch.equal(images, before)
    for i in range(40):
        padded = tv.pad(images[i].permute(2, 0, 1), [padding] * 4)
        expected = tv.crop(padded, *offsets[i].tolist(), *shape)
        if mirrored[i]:
            expected = tv.hflip(expected)
        assert torch.equal(found[i].permute(2, 0, 1), expected)


def test_without_augmentation_nothing_changes(run, numbered):
    images = torch.randint(0, 256, (3, 4, 4, 3), dtype=torch.uint8)
    assert torch.equal(augment(images), images)
    plain = Batches(numbered, 100, run, "test")
    none = Batches(numbered, 100, run, "test", augmentation=Augmentation(0, False))
    assert torch.equal(next(plain.epoch(0))[0], next(none.epoch(0))[0])


def locate(found: np.ndarray, source: np.ndarray, padding: int) -> tuple[int, int, bool]:
    """The crop that made `found`, by trying them all."""
    height, width, _ = source.shape
    padded = np.pad(source, ((padding, padding), (padding, padding), (0, 0)))
    hits = [(dy, dx, flip) for dy in range(2 * padding + 1) for dx in range(2 * padding + 1)
            for flip in (False, True)
            if np.array_equal(found[:, ::-1] if flip else found,
                              padded[dy : dy + height, dx : dx + width])]
    assert len(hits) == 1
    return hits[0]


def test_crops_and_flips_are_uniform_and_new_in_every_epoch(run):
    rng = np.random.default_rng(0)
    pixels = rng.integers(1, 256, (300, 6, 6, 3), dtype=np.uint8)
    data = as_set(pixels)
    sources = {image.tobytes(): i for i, image in enumerate(pixels)}
    order = {}
    plain = Batches(data, 300, run, "test")
    augmented = Batches(data, 300, run, "test", augmentation=Augmentation(2, True))
    draws = []
    for epoch in range(2):
        images, _ = next(plain.epoch(epoch))
        order = [sources[(image * 255).round().byte().numpy().tobytes()]
                 for image in images.permute(0, 2, 3, 1).contiguous()]
        images, _ = next(augmented.epoch(epoch))
        found = (images.permute(0, 2, 3, 1) * 255).round().byte().numpy()
        draws.append({row: locate(found[i], pixels[row], 2) for i, row in enumerate(order)})
    assert sum(draws[0][row] == draws[1][row] for row in range(300)) < 30   # chance: 6
    for axis in (0, 1):
        counts = np.bincount([draw[axis] for epoch in draws for draw in epoch.values()],
                             minlength=5)
        assert len(counts) == 5
        assert ((counts - 120) ** 2 / 120).sum() < 18.5     # chi-square, 4 degrees, p = 0.001
    flips = sum(draw[2] for epoch in draws for draw in epoch.values())
    assert abs(flips - 300) < 3.3 * np.sqrt(600) / 2


def test_flip_and_crop_alone(run):
    ramp = np.zeros((100, 6, 6, 3), np.uint8)
    ramp[:] = np.arange(5, 65, 10)[:, None]                 # columns 5, 15, ... 55
    data = as_set(ramp)
    flipped, _ = next(Batches(data, 100, run, "t", augmentation=Augmentation(0, True)).epoch(0))
    corners = (flipped[:, 0, 0, 0] * 255).round().tolist()
    assert set(corners) == {5, 55}
    cropped, _ = next(Batches(data, 100, run, "t", augmentation=Augmentation(1, False)).epoch(0))
    columns = {tuple((image[0, 3] * 255).round().tolist()) for image in cropped}
    assert columns == {(5, 15, 25, 35, 45, 55), (0, 5, 15, 25, 35, 45), (15, 25, 35, 45, 55, 0)}


def test_what_a_row_gets_does_not_depend_on_the_batch_size(run, images, labels):
    data = as_set(images, labels)
    augmentation = Augmentation(3, True)
    large, small = (torch.cat([x for x, _ in Batches(data, size, run, "test",
                                                     augmentation=augmentation).epoch(1)])
                    for size in (60, 12))
    assert torch.equal(large, small)


def test_what_comes_before_the_crop_gets_stored_pixels_and_steps_that_count_on(run, numbered):
    def before_crop(images, step):
        seen.append((images.dtype, tuple(images.shape), step))
        return images + 100

    seen = []
    batches = Batches(numbered, 40, run, "test", augmentation=Augmentation(2, True),
                      drop_last=False, before_crop=before_crop)
    [images, *_] = [images for images, _ in batches.epoch(1, 1)]
    assert seen == [(torch.uint8, (40, 6, 6, 3), 4), (torch.uint8, (20, 6, 6, 3), 5)]
    plain = Batches(numbered, 40, run, "test", augmentation=Augmentation(2, True), drop_last=False)
    [stored, *_] = [images for images, _ in plain.epoch(1, 1)]
    levels, stored = (torch.round(255 * floats) for floats in (images, stored))
    assert (levels == 0).any()
    assert torch.equal(levels, torch.where(levels == 0, 0, stored + 100))   # the rim stays black


def test_views_take_the_place_of_crop_and_flip(run, images, labels):
    """Of each step a draw of its own, also where an epoch starts in its middle."""
    data = as_set(images, labels)
    views = Views(scale=(0.08, 1.0))
    plain, viewed = (Batches(data, 25, run, "test", augmentation=augmentation)
                     for augmentation in (Augmentation(), Augmentation(views=views)))
    for start in (0, 2):
        for step, ((before, label), (after, same)) in enumerate(
                zip(plain.epoch(1, start), viewed.epoch(1, start), strict=True), start):
            generator = run.stream("test/views", len(plain) + step)
            drawn = draw(views, 25, images.shape[1:3], generator)
            assert torch.equal(after, apply(before, drawn))
            assert torch.equal(label, same)
