"""Turn somebody else's poison into an image set.

    python scripts/import_poison.py FILE --base cifar10 [--out DIR] [--name em]
    python scripts/import_poison.py noise.pkl --base cifar10 --norm linf --radius 8/255

FILE is a perturbation (.pt, int8 .pkl, .npy), poisoned images (.npy, .npz, .pt, .pkl, CIFAR's
batches) or a folder of pictures (<index>.png, or a folder a class); which, it says itself, and
--units settles what is ambiguous (noise, images: in [0, 1]; 2: of images in [-1, 1]; 255: in grey
levels). --rounding floor is the arithmetic of EM's, LSP's, HYPO's and SEP's loaders; that of others
is within one grey level. Rows and labels are the base set's: whole images are checked
against its images, labels against its labels; of noise alone only the number of rows can be, so
look at what the line after says of its classes. Pickles are read without being run. The lineage
names the file and its SHA-256.
"""

import argparse
import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from core import config, files
from core.command import Parser, command, positive
from core.config import as_path, expand
from core.datasets import DataSettings, load, note_missing_classes
from core.errors import UserError
from core.imageset import ImageSet
from core.job import Job
from core.names import chosen_name
from core.origins import remember_test
from core.perturbation import Bound, Perturbation, limit_of, measure, nearest_mean
from core.remembered import place
from core.run import Run
from core.splits import rows_split, split_of
from scripts.exchange import aligning, foreign
from scripts.exchange.units import UNITS

VERSION = 3


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/import_poison.py", __doc__)
    parser.add_argument("source", type=as_path, metavar="FILE")
    parser.add_argument("--base", type=expand, required=True,
                        help="the clean set, as data= takes it")
    parser.add_argument("--split", default="train", help="of the base, such as first:40000")
    parser.add_argument("--size", type=positive, help="of the base: folders and digits")
    parser.add_argument("--test", type=expand,
                        help="the clean test set, where the base has none of its own")
    parser.add_argument("--root", type=expand, default="data",
                        help="where torchvision's data sets are")
    parser.add_argument("--out", type=as_path, help="the folder to make (runs/poisons/...)")
    parser.add_argument("--name", help="of the attack (the file's)")
    parser.add_argument("--units", choices=UNITS, default="auto")
    parser.add_argument("--rounding", choices=("round", "floor"), default="round",
                        help="of noise and floats; most released loaders floor")
    parser.add_argument("--positive-only", action="store_true",
                        help="drop negative noise, as EM's released loaders do")
    parser.add_argument("--candidate", type=int, default=0, metavar="R",
                        help="which of several noises an image")
    parser.add_argument("--norm", choices=("linf", "l2", "l0"), help="check the noise's norm")
    parser.add_argument("--radius", help="that it may have, such as 8/255")
    parser.add_argument("--force", action="store_true",
                        help="move other work in the way aside (finished) or drop it (unfinished)")
    arguments = parser.parse_args(argv)
    bound = bound_of(arguments)

    settings = DataSettings(arguments.base, arguments.split, arguments.size, arguments.test,
                            arguments.root)
    base = remember_test(load(settings, "--base"), settings)
    note_missing_classes(base, arguments.base)
    source = arguments.source
    name = chosen_name(arguments.name, source.stem)
    options = aligning.Options(arguments.units, arguments.rounding, arguments.positive_only,
                               arguments.candidate)
    aligned = aligning.align(foreign.read(source), base, options, str(source),
                             bounded=bound is not None)
    clean = part_of(base, aligned.rows, str(source))
    found = measure(clean, replace(clean, images=aligned.images))
    check(bound, found, clean, arguments, str(source), aligned.units)

    origin = {"source": place(source), "sha256": digest_of(source), "how": aligned.how}
    inputs = {"data": clean.fingerprint, "source": origin["sha256"]}
    for labels in foreign.labels_beside(source)[:1]:
        inputs["labels"] = origin["labels_sha256"] = files.sha256(labels)
    shown = {**config.plain(options), "name": name}
    job = Job("poisons", f"{base.meta['name']}-{name}", "import", VERSION,
              {**shown, "how": aligned.how}, 0, inputs, name)
    with Run(job, out=arguments.out, settings={"method": "import", **origin, **shown},
             force=arguments.force, wait=True, option="--out") as run:
        if not run.done:
            if len(clean) < len(base):
                run.say(f"{len(clean):,} of the base's {len(base):,} images are there; the set "
                        "has no others")
            save(aligned, clean, found, origin, run)
    ImageSet.load(run.out)
    print(run.out)


def save(aligned: aligning.Aligned, clean: ImageSet, found: Perturbation, origin: dict, run: Run
         ) -> None:
    """Write the set, and say what was done and what it looks like."""
    poisoned = clean.map_pixels(
        lambda _, rows: torch.from_numpy(np.array(aligned.images[rows])), run)
    run.log_once("perturbation", **found.as_record(), **origin)
    run.say(aligned.how)
    run.say(found.in_words())
    share = nearest_mean(clean, poisoned, run.rng("probe"))
    if share is not None:
        chance = 1 / clean.num_classes
        run.say(f"nearest class mean of the perturbation: {share:.1%} held out (chance "
                f"{chance:.1%})" + ("; it goes by no class, or its rows are in another order"
                                    if share < 2 * chance else ""))
    poisoned.meta["lineage"][-1]["imported"] = origin
    poisoned.save(run)


def bound_of(arguments: argparse.Namespace) -> Bound:
    if (arguments.norm is None) != (arguments.radius is None):
        raise UserError("--norm and --radius go together")
    if arguments.norm is None:
        return None
    radius = config.read_number(arguments.radius)
    if radius is None or radius <= 0:
        raise UserError(f"--radius: '{arguments.radius}' is no positive number")
    if arguments.norm == "linf" and radius > 0.5:
        raise UserError(f"--radius: {arguments.radius} is no linf radius in [0, 1]; write 8/255")
    return arguments.norm, float(radius)


def part_of(base: ImageSet, rows: np.ndarray, where: str) -> ImageSet:
    """The base's rows that the file has."""
    whole = base.meta["root"]
    if len(rows) == len(base):
        return base
    if whole.get("split", "train") != "train":      # one split must lead back to the clean rows
        raise UserError(f"{where}: {len(rows)} images, a part of the {len(base)} of --split "
                        f"{whole['split']}; leave --split out, the rows are found")
    return split_of(base, rows_split(rows, len(base)))


def check(bound: Bound, found: Perturbation, clean: ImageSet, arguments: argparse.Namespace,
          where: str, units: str) -> None:
    if found.changed_rows == 0:
        raise UserError(f"{where}: these are the base set's images, unchanged")
    if bound is None:
        return
    value, limit = limit_of(bound, found, clean.images[0].size, arguments.rounding)
    if value > limit:
        hint = "; of noise for images in [-1, 1] write --units noise2" if units == "noise" and (
            value <= 2 * limit) else ""
        raise UserError(f"{where}: its {bound[0]} is {value:.5g}, above the {bound[1]:.5g} of "
                        f"--radius ({found.in_words()}){hint}")


def digest_of(source: Path) -> str:
    """SHA-256 of a file, or of a folder's names and files."""
    if source.is_file():
        return files.sha256(source)
    digest = hashlib.sha256()
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        digest.update(f"{path.relative_to(source)} {files.sha256(path)}\n".encode(
            errors="surrogateescape"))
    return digest.hexdigest()
