"""ImageSet: labelled uint8 images with a lineage, and the only place where floats become pixels.

On disk a folder that NumPy alone can open: `images.npy` uint8 (N, H, W, 3), `labels.npy` int64
(N,), `meta.json` (classes, root data set, its clean test set, lineage, digests).
"""

import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch

from core import files, gathered, memory, remembered, streams
from core.artefact import read_array, read_meta
from core.errors import UserError
from core.run import Run

SLICE_ROWS = 4 * streams.BLOCK      # rows of at most 64x64 that are in memory as floats together
FAR = 2.0           # no images in [0, 1] have a mean further from 0, whatever is added to them
Rounding = Literal["round", "floor"]


def title(step: dict) -> str:
    """What people call a step of a lineage."""
    return step.get("preset") or step["method"]


def rows_at_once(shape: tuple[int, int]) -> int:
    """Rows of images of this (height, width) that are in memory as floats together: of large ones
    fewer, whole blocks of noise. It changes no result."""
    fitting = SLICE_ROWS * 64 * 64 // (shape[0] * shape[1])
    return min(SLICE_ROWS, max(1, fitting // streams.BLOCK) * streams.BLOCK)


@dataclass(frozen=True)
class ImageSet:
    """Images uint8 (N, H, W, 3) and labels int64 (N,), perhaps memory-mapped and read-only: slices
    of them are read, never the whole (`slices`).

    `labels` is None where a method must not see them. `meta` holds `fingerprint`, `name`,
    `classes` (names), `root` and `test` (how to load the original set and its clean test set)
    and `lineage` (a list of {method, config, ...}, oldest first); `root_digest` and `test_digest`
    where these two were read when the set was made (`core.remembered`).
    """

    images: np.ndarray
    labels: np.ndarray | None
    meta: dict

    def __len__(self) -> int:
        return len(self.images)

    @property
    def num_classes(self) -> int:
        """Of the data set: a set may lack some."""
        return len(self.meta["classes"])

    @property
    def image_shape(self) -> tuple[int, int]:
        """(height, width)"""
        return self.images.shape[1:3]

    @property
    def made_by(self) -> list[str]:
        """Presets of the methods behind it, oldest first: 'rem_lite', where the method is rem."""
        return [title(step) for step in self.meta["lineage"]]

    @property
    def fingerprint(self) -> str:
        """Hex: of the content for a set from outside, of the job that made it for the others."""
        return self.meta["fingerprint"]

    @property
    def digests(self) -> dict[str, str]:
        """SHA-256 of the files behind it; none for a set from outside: its fingerprint is one."""
        return self.meta.get("digests", {})

    def without_labels(self) -> "ImageSet":
        """For methods that must not see them."""
        return dataclasses.replace(self, labels=None)

    def labels_at(self, rows: slice | np.ndarray = slice(None)) -> torch.Tensor:
        """A copy of these rows' labels, int64 (n,)."""
        return torch.from_numpy(np.array(self.labels[rows]))

    def slices(self) -> Iterator[slice]:
        """Slices over all rows, each as large as memory takes it as floats."""
        step = rows_at_once(self.image_shape)
        for start in range(0, len(self), step):
            yield slice(start, min(start + step, len(self)))

    def first(self, rows: int) -> "ImageSet":
        """The first rows only (--limit)."""
        if rows >= len(self):
            return self
        labels = None if self.labels is None else self.labels[:rows]
        images = gathered.rows_of(self.images, np.arange(rows))
        return dataclasses.replace(self, images=images, labels=labels)

    def subset(self, rows: np.ndarray, label: str, **meta) -> "ImageSet":
        """The given rows; `label` says which, for the fingerprint. `meta` replaces entries."""
        fingerprint = hashlib.sha256(f"{self.fingerprint}/{label}".encode()).hexdigest()
        labels = None if self.labels is None else self.labels[rows]
        meta = {**self.meta, "fingerprint": fingerprint, **meta}
        return ImageSet(gathered.rows_of(self.images, rows), labels, meta)

    # --- disk --------------------------------------------------------------------------------

    @classmethod
    def load(cls, path: str | Path) -> "ImageSet":
        """Memory-map a set and verify shapes, dtypes, label range and SHA-256 digests.

        Raises UserError that names the file at fault.
        """
        path = Path(path)
        meta = read_meta(path, "imageset")
        arrays = {name: read_array(path / f"{name}.npy", meta) for name in ("images", "labels")}
        images, labels = arrays["images"], np.array(arrays["labels"])
        check_arrays(images, labels, len(meta["classes"]), str(path))
        specs = {key: remembered.from_here(meta[key], path, meta.get("working_folder"))
                 for key in ("root", "test")}
        return cls(images, labels, {**meta, **specs})

    def save(self, run: Run) -> None:
        """Finish a run with this set, whose `images.npy` map_rows or map_pixels has written."""
        labels = np.ascontiguousarray(self.labels, np.int64)
        if run.world.leads:
            files.write_array(run.work / "labels.npy", labels)
            read_back(run.work, {"images.npy": (self.images.shape, np.uint8),
                                 "labels.npy": (labels.shape, np.int64)})
        run.finish({"kind": "imageset", "shape": list(self.images.shape),
                    "working_folder": remembered.way_back(run.out),
                    **{k: v for k, v in self.meta.items() if k not in WRITTEN_BY_RUN}})

    # --- row by row --------------------------------------------------------------------------

    def map_rows(
        self,
        function: Callable[[torch.Tensor, slice], torch.Tensor],
        run: Run,
        *,
        rounding: Rounding = "round",
        device: torch.device | str = "cpu",
        file: str = "images.npy",
        beside: Sequence[files.RowFile] = (),
        slice_rows: int | None = None,
        exact: bool = True,
        dtype: torch.dtype = torch.float32,
    ) -> "ImageSet":
        """A new set whose rows are `function(images, rows)`, written as they come; resumable.

        `function` takes `dtype` (n, H, W, 3) in [0, 1] on `device` and the slice of row numbers,
        computes in exact float32 (with `exact`; else in the run's precision), and returns the same
        shape; values outside [0, 1] are clipped. No float copy of the whole set exists: it meets
        `slice_rows` (`rows_at_once`) at a time. `beside` are further files that it writes by row.
        Raises UserError with the rows if a result is not finite, or in grey levels.
        """

        def pixels(images: torch.Tensor, rows: slice) -> torch.Tensor:
            with run.device.exact() if exact else contextlib.nullcontext():
                floats = function(images.to(dtype).div_(255), rows)
            level = floats.mean().item()
            if not -FAR < level < FAR:                  # nor is NaN
                bad = torch.isfinite(floats).flatten(1).all(1).logical_not().nonzero()
                if len(bad):
                    raise UserError(f"{run.out}: row {rows.start + bad[0].item()} has non-finite "
                                    f"pixels; the method '{run.job.method}' diverged on it")
                raise UserError(f"{run.out}: rows {rows.start} to {rows.stop - 1} have a mean of "
                                f"{level:.3g}, where images are in [0, 1]: the method "
                                f"'{run.job.method}' gives grey levels, or diverged")
            return quantize(floats, rounding)

        return self.map_pixels(pixels, run, device=device, file=file, beside=beside,
                               slice_rows=slice_rows)

    def map_pixels(
        self,
        function: Callable[[torch.Tensor, slice], torch.Tensor],
        run: Run,
        *,
        device: torch.device | str = "cpu",
        file: str = "images.npy",
        beside: Sequence[files.RowFile] = (),
        slice_rows: int | None = None,
    ) -> "ImageSet":
        """Like map_rows, uint8 to uint8, for methods that are defined on grey levels."""
        memory.require_disk(run.work / file, self.images.nbytes, f"{len(self):,} images")
        target = files.RowFile(run.work / file, self.images.shape, np.uint8)
        with contextlib.closing(target):
            step = slice_rows or rows_at_once(self.image_shape)
            for start, stop in run.sweep(Path(file).stem, len(self), step, target, *beside):
                slice_ = torch.from_numpy(np.array(self.images[start:stop])).to(device)
                made = function(slice_, slice(start, stop)).cpu().numpy()
                if made.shape != slice_.shape:
                    raise ValueError(f"{run.job.method}: rows {start} to {stop - 1} are "
                                     f"{tuple(slice_.shape)}, and became {made.shape}")
                target.write(start, made)
        meta = {**self.meta, "fingerprint": run.job.fingerprint,
                "lineage": [*self.meta["lineage"], run.lineage_entry()]}
        return ImageSet(np.load(run.work / file, mmap_mode="r"), self.labels, meta)


def joined(one: ImageSet, other: ImageSet) -> ImageSet:
    """The rows of `one`, then those of `other`; `meta` is that of `one`."""
    return dataclasses.replace(one, images=gathered.joined(one.images, other.images),
                               labels=np.concatenate([one.labels, other.labels]))


WRITTEN_BY_RUN = ("format", "kind", "shape", "fingerprint", "digests", "device", "versions",
                  "working_folder", "sha256", "log_sha256")


def read_back(folder: Path, expected: dict[str, tuple[tuple[int, ...], type]]) -> None:
    """Raise UserError unless every array of a folder can be read, and those `expected` have their
    shape and dtype: before the folder becomes an artefact."""
    for path in sorted({*folder.glob("*.npy"), *(folder / name for name in expected)}):
        try:
            found = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, ValueError, EOFError):
            found = None
        if found is None or (found.shape, found.dtype) != expected.get(
                path.name, (found.shape, found.dtype)):
            raise UserError(f"{path} was not written as it should have been; remove {folder} to "
                            "start again")


def to_floats(levels: torch.Tensor) -> torch.Tensor:
    """uint8 (B, H, W, 3) as networks take it: float32 (B, 3, H, W) in [0, 1], channels-last."""
    return levels.permute(0, 3, 1, 2).float().div_(255)


def quantize(floats: torch.Tensor, rounding: Rounding = "round") -> torch.Tensor:
    """Float [0, 1] to uint8: clip, then half to even (`round`) or truncate as released code does
    (`floor`). Exact inverse of uint8 / 255 in float32 both ways. Overwrites `floats`."""
    levels = floats.clamp_(0, 1).mul_(255)
    return (levels.round_() if rounding == "round" else levels.floor_()).to(torch.uint8)


def from_arrays(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    name: str,
    classes: list[str],
    root: dict,
    test: dict | None,
) -> ImageSet:
    """A set that comes from outside. Its fingerprint is the digest of its content.

    Raises UserError if shapes, dtypes or labels are wrong.
    """
    check_arrays(images, labels, len(classes), name)
    digest = content_digest(images, labels, len(classes))
    return ImageSet(images, labels, {
        "fingerprint": digest, "name": name, "classes": classes, "root": root,
        "root_digest": digest, "test": test, "lineage": [],
    })


def content_digest(images: np.ndarray, labels: np.ndarray, classes: int) -> str:
    """SHA-256 (hex) of what a set holds: shape, number of classes, pixels and labels."""
    digest = hashlib.sha256(repr((images.shape, classes)).encode())
    step = rows_at_once(images.shape[1:3])
    for start in range(0, len(images), step):
        digest.update(np.ascontiguousarray(images[start : start + step]).data)
    digest.update(np.ascontiguousarray(labels).data)
    return digest.hexdigest()


def check_arrays(images: np.ndarray, labels: np.ndarray, classes: int, where: str) -> None:
    """Raise UserError unless images are uint8 (N, H, W, 3) and labels int64 (N,) in range."""
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
        raise UserError(f"{where}: images are {images.dtype} {images.shape}; they must be uint8 "
                        "(N, height, width, 3) with values 0-255")
    if labels.dtype != np.int64 or labels.ndim != 1:
        raise UserError(f"{where}: labels are {labels.dtype} {labels.shape}; they must be int64 "
                        "(N,)")
    if images.size == 0:
        raise UserError(f"{where}: the set is empty, {images.shape}")
    if len(images) != len(labels):
        raise UserError(f"{where}: {len(images)} images but {len(labels)} labels")
    outside = np.flatnonzero((labels < 0) | (labels >= classes))
    if len(outside):
        raise UserError(f"{where}: row {outside[0]} has label {labels[outside[0]]}; labels must "
                        f"lie in 0..{classes - 1}")
