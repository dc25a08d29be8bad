"""The noise of every image: where it may start, and on disk or in memory while an attack moves it.
"""

from collections.abc import Callable, Iterator

import torch
from torch import nn

from core.errors import UserError
from core.files import RowFile
from core.imageset import ImageSet, Rounding, rows_at_once
from core.memory import in_words, require_disk, require_memory
from core.run import Run
from core.streams import BLOCK, by_block

LIFT = 2**-16           # 0.004 of a grey level: in float32, x/255 + 8/255 can fall just below it


def lifted(noise: torch.Tensor, rounding: Rounding) -> torch.Tensor:
    """Noise, or images with it, so that rounding down meets whole levels as whole ones. In place.
    """
    return noise.add_(LIFT) if rounding == "floor" else noise


class TwoFiles:
    """The noise of every image as float16 (N, H, W, 3): one file to read, one to write, by turns,
    so that a round killed in its middle still finds what it started from. Zeros, where nothing has
    been written yet. Raises UserError if the disk has no room for them."""

    def __init__(self, clean: ImageSet, run: Run) -> None:
        self._rows, self._run = len(clean), run
        self._step = rows_at_once(clean.image_shape)
        paths = [run.work / "state" / f"noise{i}.npy" for i in (0, 1)]
        if not paths[0].exists():
            require_disk(paths[0], 2 * 2 * clean.images.size,
                         f"two copies of the noise of {len(clean):,} images")
        self._files = [RowFile(path, clean.images.shape, "float16") for path in paths]

    def files(self, round_: int) -> tuple[RowFile, RowFile]:
        """What round `round_` reads (its noise so far) and writes."""
        return self._files[round_ % 2], self._files[1 - round_ % 2]

    def begin(self, round_: int, start: Callable[[slice], torch.Tensor] | None = None) -> None:
        """Before round `round_` of this process, the first: what it reads is what the round before
        it wrote whole, or `start` of each slice of rows, (B, 3, H, W), or no noise. Raises
        UserError where the file is damaged."""
        before, _ = self.files(round_)
        if round_:
            self._run.require_sweep(f"round{round_}", self._rows, self._step, before)
            return
        if self._run.world.leads:       # another process would clear what this one learns from
            before.clear()              # a run whose loop's state was lost starts again
            for row in range(0, self._rows if start else 0, self._step):
                store_noise(before, row, start(slice(row, min(row + self._step, self._rows))))
        self._run.world.barrier()

    def sweep(self, round_: int) -> Iterator[tuple[int, int]]:
        """The slices of rows (start, stop) that round `round_` has still to write."""
        _, after = self.files(round_)
        return self._run.sweep(f"round{round_ + 1}", self._rows, self._step, after)

    def close(self) -> None:
        for file in self._files:
            file.close()


def load_noise(file: RowFile, rows: slice, run: Run) -> torch.Tensor:
    """Rows of noise as float32 (B, 3, H, W), channels-last, on the run's device."""
    noise = torch.from_numpy(file.read(rows)).to(run.device.torch)
    return noise.float().permute(0, 3, 1, 2)


def store_noise(file: RowFile, start: int, delta: torch.Tensor) -> None:
    """Write noise (B, 3, H, W) at the rows from `start` on."""
    file.write(start, delta.permute(0, 2, 3, 1).half().cpu().numpy())


def uniform_noise(rows: slice, shape: tuple[int, int], epsilon: float, run: Run) -> torch.Tensor:
    """Noise of these rows, (B, 3, H, W), uniform in [-epsilon, epsilon]: each row's own, whatever
    rows are asked for with it."""
    drawn = by_block(rows, lambda block: torch.rand(
        BLOCK, 3, *shape, generator=run.stream(f"{run.job.method}/start", block)))
    return within(epsilon, drawn)


def within(epsilon: float, drawn: torch.Tensor) -> torch.Tensor:
    """What was drawn from [0, 1), in place, as noise within the budget."""
    return drawn.mul_(2).sub_(1).mul_(epsilon)


# --- in memory -------------------------------------------------------------------------------


class Noise(nn.Module):
    """The noise of each class or of each row, (K or N, 3, H, W), in [0, 1] units."""

    def __init__(self, start: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("delta", start)


def require_rows(clean: ImageSet, run: Run, instead: str = "") -> None:
    """Raise UserError where the noise of each row does not fit: on a GPU once, in memory three
    times, as it is and twice as it is read for resuming; `instead` is what else one may do."""
    height, width = clean.image_shape
    whose, size = f"noise of {len(clean):,} images of {height}x{width}", 4 * clean.images.size
    remedy = f"take fewer images (split=first:N){instead}"
    require_memory(3 * size, f"{run.job.method}: three copies of the {whose}", remedy)
    require_on_card(size, f"{run.job.method}: the {whose}", remedy, run.device.torch)


def require_on_card(size: int, what: str, remedy: str, device: torch.device) -> None:
    """The same as `core.memory.require_memory` for the memory of a GPU; any other device has none
    of its own."""
    if device.type == "cuda" and size > (free := torch.cuda.mem_get_info(device)[0]):
        raise UserError(f"{what} is {in_words(size)}, and {in_words(free)} of the GPU's memory are "
                        f"left; {remedy}")


def publish(clean: ImageSet, noise: Noise, rounding: Rounding, run: Run, *, by_class: bool = False
            ) -> ImageSet:
    """Clean images plus the noise of their class or row."""
    delta = noise.delta.cpu().permute(0, 2, 3, 1)
    labels = clean.labels_at()

    def noised(images: torch.Tensor, rows: slice) -> torch.Tensor:
        return lifted(images.add_(delta[labels[rows] if by_class else rows]), rounding)

    return clean.map_rows(noised, run, rounding=rounding)
