"""Checkpoint: the weights of a trained purifier, and what they were trained on.

A folder of `<part>.safetensors` (one per stage, or model and EMA) beside the usual config.yaml,
log.jsonl and meta.json: no pickle.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from core import files, reading
from core.artefact import read_meta, verify
from core.errors import UserError
from core.imageset import ImageSet
from core.run import Run
from core.splits import short

HALVES = (torch.float16, torch.bfloat16)        # kinds that weights of fp32 may be kept in


@dataclass(frozen=True)
class Checkpoint:
    """A finished checkpoint folder. `meta` holds method, config, seed, precision, `trained_on`."""

    path: Path
    meta: dict

    @classmethod
    def load(cls, path: str | Path) -> "Checkpoint":
        """Read and verify meta.json; weights are verified when they are read."""
        path = Path(path)
        return cls(path, read_meta(path, "checkpoint"))

    @property
    def fingerprint(self) -> str:
        return self.meta["fingerprint"]

    def verify(self) -> None:
        """Raise UserError for a file that is missing or damaged, before any is read."""
        for name in self.meta["digests"]:
            verify(self.path / name, self.meta)

    def weights_into(self, model: nn.Module, part: str) -> nn.Module:
        """Load `<part>.safetensors` into a model of the right shape. Weights may be kept at half
        precision, of which fp32 holds every value.

        Raises UserError for a missing, damaged or foreign file.
        """
        path = self.path / f"{part}.safetensors"
        verify(path, self.meta)
        weights, wanted = reading.safetensors(path), model.state_dict()
        for name, tensor in weights.items():        # loading would round or truncate another kind
            if name not in wanted or tensor.dtype == wanted[name].dtype:
                continue
            if wanted[name].dtype != torch.float32 or tensor.dtype not in HALVES:
                raise UserError(f"{path} does not fit this model: {name} is {tensor.dtype}, not "
                                f"{wanted[name].dtype}")
        try:
            model.load_state_dict(weights)
        except Exception as error:
            reason = str(error).splitlines()[-1].strip()
            raise UserError(f"{path} does not fit this model: {reason}") from None
        return model

    def check_fits(self, images: ImageSet, method: str, *, classes: bool = True,
                   any_size: bool = False) -> None:
        """Raise UserError unless this checkpoint is of `method` and of such images; without
        `classes` their number does not matter, with `any_size` their size does not."""
        if self.meta["method"] != method:
            raise UserError(f"{self.path} is a checkpoint of '{self.meta['method']}', not of "
                            f"'{method}'")
        trained = self.meta["trained_on"]
        height, width = images.image_shape
        found, expected = [height, width], trained["shape"][1:3]
        crop = self.meta["config"].get("crop")          # the side of what a network saw of them
        any_size = any_size or (crop is not None and found == [crop, crop])
        other_classes = classes and images.num_classes != trained["num_classes"]
        if (found != expected and not any_size) or other_classes:
            of = (f" of {trained['num_classes']} classes", f" of {images.num_classes}")
            raise UserError(
                f"{self.path} was trained on {expected[0]}x{expected[1]} images"
                f"{of[0] if classes else ''}, but the set has {height}x{width} images"
                f"{of[1] if classes else ''}")


def save_weights(model: nn.Module, run: Run, part: str) -> None:
    """Write `<part>.safetensors` into the run's folder, whole; of several processes, which hold the
    same, rank 0."""
    from safetensors.torch import save

    if not run.world.leads:
        return
    tensors = {name: tensor.detach().cpu().contiguous()
               for name, tensor in model.state_dict().items()}
    files.write_bytes(run.work / f"{part}.safetensors", save(tensors))


def trained_on(images: ImageSet, before: dict | None = None) -> dict:
    """What a checkpoint, and every record after it, says of its training set; `before` is that of
    the checkpoint that it was fine-tuned from."""
    return {
        "name": images.meta["name"], "fingerprint": images.fingerprint,
        "shape": list(images.images.shape), "num_classes": images.num_classes,
        "root": images.meta["root"], "lineage": [step["method"] for step in images.meta["lineage"]],
        **({"root_digest": images.meta["root_digest"]} if "root_digest" in images.meta else {}),
        **({"after": before} if before else {}),
    }


def learned_from(images: ImageSet, **more) -> dict:
    """What a learner's record says of labelled images that it had beside the set. `more`: `rows`
    (their numbers, in words) and `originals` (how many are originals of the set's rows)."""
    return {**trained_on(images), "labelled": True, **more}


def history(trained: dict) -> Iterator[dict]:
    """A checkpoint's training sets, the last one first."""
    while trained:
        yield trained
        trained = trained.get("after")


def describe(trained: dict) -> str:
    """What `trained_on` says, for people."""
    return ", after ".join(map(describe_one, history(trained)))


def describe_one(trained: dict) -> str:
    """The same of the last training set alone."""
    root = trained["root"]
    split = f", split {short(root['split'])}" if "split" in root else ""
    made = "".join(f" + {method}" for method in trained["lineage"])
    return f"{trained['shape'][0]} images of {root.get('data', trained['name'])}{split}{made}"


def finish(run: Run, images: ImageSet, *, before: dict | None = None, **meta) -> None:
    """Finish a run with its checkpoint, trained on `images` (and `before`, see `trained_on`). There
    too stand seconds, seed and settings, so that records after it tell them."""
    run.finish({
        "kind": "checkpoint", "method": run.job.method, "config": run.job.config,
        "seed": run.seed, "precision": run.device.precision,
        "trained_on": {**trained_on(images, before), "seconds": round(run.seconds, 3),
                       "seed": run.seed, "config": run.job.config},
        "lineage": [*images.meta["lineage"], run.lineage_entry()], **meta,
    })
