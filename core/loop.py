"""A training loop that survives kill -9: epochs of steps whose state is saved and found again."""

import time
import typing
from collections.abc import Iterator
from typing import Any

import torch

from core.errors import UserError
from core.run import Run


class Minibatches(typing.Protocol):
    """What `Loop.steps` walks; an epoch can start in its middle."""

    def __len__(self) -> int: ...
    def epoch(self, epoch: int, start: int = 0) -> Iterator[Any]: ...


class Loop:
    """Epochs of steps that resume bit for bit where an earlier process stopped.

        loop = Loop(run, "stage1", epochs, model=model, optimizer=optimizer)
        for epoch in loop:
            for images, labels in loop.steps(batches):
                ...
                loop.add(len(images), loss=loss)
            loop.end_epoch(accuracy=...)

    `loop.stop()` before `end_epoch` makes this epoch the last one.

    `objects` are what the steps change: anything with state_dict/load_state_dict, or lists of
    numbers (a curve), kept by reference. Whatever else the steps need must follow from
    (seed, epoch, step), or from `number`, which counts the steps on over the epochs. State is saved
    when SAVE_SECONDS have passed, at Ctrl-C and at the end; with `save_epochs` after every epoch,
    for loops whose epochs change files too.
    """

    def __init__(self, run: Run, name: str, epochs: int, *, save_epochs: bool = False,
                 **objects: Any) -> None:
        self.run, self.name, self.epochs, self.objects = run, name, epochs, objects
        self.save_epochs = save_epochs
        self.epoch = self.step = self.images = 0
        self.number = 0                     # of the step, counted on over the epochs
        # images and time in steps, over all processes; the first step of each, which compiles, does
        # not count (a CUDA graph is recorded in a later one, which does)
        self.timed, self.seconds = 0, 0.0
        self.means: dict[str, float] = {}   # of the last whole epoch
        self._sums: dict[str, torch.Tensor] = {}
        self._weights: dict[str, int] = {}      # images behind each sum
        self._warm = False
        self._shown = 0.0
        self._bar = None
        state = run.load_state(name)
        if state is not None:
            try:
                self._restore(state)
                log = state["log"]
            except (AttributeError, KeyError, RuntimeError, TypeError, ValueError):
                raise UserError(f"{run.work} was begun by another version of this code; remove it "
                                "to start again") from None
        run.looped[name] = self.seconds
        run.folder.log.rewind(name, self.epoch)
        if state is not None and run.world.leads and log != run.folder.log.digest(name):
            raise UserError(f"{run.work / 'log.jsonl'} is damaged: it lacks lines of '{name}' as "
                            f"they were written; remove {run.work} to start again")

    def __iter__(self) -> Iterator[int]:
        try:
            while self.epoch < self.epochs:
                epoch = self.epoch
                yield epoch
                if self.epoch != epoch + 1:
                    raise RuntimeError(f"{self.name}: the loop's body did not call end_epoch")
        finally:
            if self._bar is not None:
                self._bar.close()

    def steps(self, batches: Minibatches) -> Iterator[Any]:
        """The rest of this epoch's minibatches."""
        if self._bar is None:
            length = len(batches)
            self._bar = self.run.progress(self.epochs * length, self.name,
                                          initial=self.epoch * length + self.step)
        started = time.perf_counter()
        for batch in batches.epoch(self.epoch, self.step):
            before, self.number = self.images, self.epoch * len(batches) + self.step
            yield batch
            self.step += 1
            if self._warm:
                self.timed += self.images - before
            else:
                self._wait()
                self._warm, started = True, time.perf_counter()
            self._show()
            if self.run.save_due():
                self.seconds += time.perf_counter() - started
                self._save()
                self._stop_if_interrupted()
                started = time.perf_counter()
        self._wait()
        self.seconds += time.perf_counter() - started

    def stop(self) -> None:
        """End with this epoch, as if no more had been asked for: its `end_epoch` saves that, and
        whoever resumes from there does no epoch more."""
        self.epochs = self.epoch + 1

    @property
    def images_per_second(self) -> float:
        """In timed steps; 0 if there was none."""
        return self.timed / self.seconds if self.timed else 0.0

    def add(self, weight: int, **values: torch.Tensor) -> None:
        """Add a step's means over `weight` images to the epoch's. No step waits for the device."""
        self.images += weight
        for key, value in values.items():
            self._weights[key] = self._weights.get(key, 0) + weight
            value = value.detach().float()
            if key in self._sums:
                self._sums[key].add_(value, alpha=weight)
            else:
                self._sums[key] = value * weight

    def end_epoch(self, **values: Any) -> dict:
        """Log the epoch's means and `values`; raise UserError if one of them is not finite: NaN
        spreads through the sums."""
        self.means = {key: total.item() / self._weights[key] for key, total in self._sums.items()}
        row = {**self.means, **values}
        self.run.looped[self.name] = self.seconds
        self.run.log(self.name, self.epoch, **row, seconds=round(self.seconds, 3))
        text = "  ".join(f"{key} {value:.4g}" for key, value in row.items()
                         if isinstance(value, (int, float)))
        self.run.say_sometimes(f"{self.name}: epoch {self.epoch + 1}/{self.epochs}  {text}")
        self.epoch += 1
        self.step = 0
        self._sums, self._weights = {}, {}
        if self.save_epochs or self.run.save_due() or self.epoch == self.epochs:
            self._save()
            if self.epoch < self.epochs:
                self._stop_if_interrupted()
        return row

    def _wait(self) -> None:
        """For the device, so that the clock is right."""
        for total in list(self._sums.values())[:1]:
            total.item()

    def _show(self) -> None:
        """Refresh the bar with the current means, at most once a second (it waits for the GPU)."""
        self._bar.update()
        if not self._bar.disable and time.monotonic() - self._shown > 1 and self._sums:
            self._shown = time.monotonic()
            self._bar.set_postfix({k: f"{v.item() / self._weights[k]:.4g}"
                                   for k, v in self._sums.items()}, refresh=False)

    def _stop_if_interrupted(self) -> None:
        """Rank 0 stops, with its state saved; the others end when they miss it."""
        if self.run.world.leads:
            self.run.stop_if_interrupted()

    def _save(self) -> None:
        if not self.run.world.leads:            # every process holds the same state
            return
        self.run.save_state(self.name, {
            "epoch": self.epoch, "epochs": self.epochs, "step": self.step, "images": self.images,
            "timed": self.timed, "seconds": self.seconds, "means": self.means,
            "sums": self._sums, "weights": self._weights,
            "log": self.run.folder.log.digest(self.name),
            "objects": {key: list(value) if isinstance(value, list) else value.state_dict()
                        for key, value in self.objects.items()},
        })

    def _restore(self, state: dict) -> None:
        self.epoch, self.step = state["epoch"], state["step"]
        self.epochs = state["epochs"]           # fewer after `stop`
        self.images, self.timed = state["images"], state["timed"]
        self.seconds, self.means = state["seconds"], state["means"]
        self._weights = state["weights"]
        self._sums = {key: total.to(self.run.device.torch) for key, total in state["sums"].items()}
        for key, value in self.objects.items():
            if isinstance(value, list):
                value[:] = state["objects"][key]
            else:
                value.load_state_dict(state["objects"][key])


def note_beyond(run: Run, end: int, unit: str = "epochs", **marks: int | tuple[int, ...]) -> None:
    """Say which of the epochs (or steps) that keys name a training of `end` of them never comes to,
    so that a rate never falls or a phase never ends."""
    if run.job.settings.get("smoke"):
        return
    for key, at in marks.items():
        late = [mark for mark in ((at,) if isinstance(at, int) else at) if mark >= end]
        if late:
            run.say(f"note: training ends after {end} {unit} and does not come to {key} "
                    + ", ".join(map(str, late)))
