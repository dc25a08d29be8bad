"""What the probes score on clean images: writes clean.csv.

    python -m scripts.detection.reference [SET ...] [--cifar10 FILE.npz] [--epochs N]
                                          [--probes NAME ...] [--images N ...] [--repeats N]

Random parts of a data set's training images at several sizes, each with a seed of its own: where
there are enough images the parts share none, else they overlap and only the seed differs. What is
measured replaces its rows of the file; the others stay.
"""

import sys

import numpy as np

from core import streams
from core.command import Parser, command, positive
from core.datasets import DataSettings, load
from core.errors import UserError
from core.imageset import ImageSet
from scripts.detection.probes import EPOCHS, PROBES, TRAINED, sample, scores
from scripts.detection.rows import put
from scripts.detection.verdict import CLEAN

SIZES = {"digits": (360, 720, 1437), "photos": (208, 416), "cifar10": (500, 1000, 2000)}
IDENTITY = ("set", "side", "classes", "images", "probe", "epochs")
COLUMNS = (*IDENTITY, "repeats", "mean", "least", "most")


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python -m scripts.detection.reference", __doc__)
    parser.add_argument("set", nargs="*", help=f"of {', '.join(SIZES)}; all, if none is named")
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=PROBES)
    parser.add_argument("--epochs", type=positive, default=EPOCHS, help="of linear and two-layer")
    parser.add_argument("--images", type=positive, nargs="+", help="only these sizes")
    parser.add_argument("--repeats", type=positive, default=3, help="parts of each size")
    parser.add_argument("--cifar10", default="cifar10", help="where it is, as data= takes it")
    arguments = parser.parse_args(argv)
    for name in arguments.set or SIZES:
        clean = load(DataSettings(arguments.cifar10 if name == "cifar10" else name), "data")
        for images in arguments.images or SIZES[name]:
            if images > len(clean):
                raise UserError(f"--images {images}: {name} has {len(clean)}")
            found = [scores(part_of(clean, images, seed), arguments.epochs, seed, arguments.probes)
                     for seed in range(arguments.repeats)]
            put(CLEAN, [row_of(name, clean, images, probe, arguments.epochs,
                               [one[probe] for one in found]) for probe in arguments.probes],
                COLUMNS, IDENTITY, by_number)


def part_of(clean: ImageSet, images: int, seed: int) -> ImageSet:
    """So many random images: those that no other seed takes, where there are enough."""
    order = streams.rng(0, "reference").permutation(len(clean))
    own = order[seed * images : (seed + 1) * images]
    return sample(clean.subset(own, "part") if len(own) == images else clean, seed, images)


def row_of(name: str, clean: ImageSet, images: int, probe: str, epochs: int, found: list[float]
           ) -> dict:
    epochs = epochs if probe in TRAINED else ""
    row = dict(zip(IDENTITY, (name, clean.image_shape[0], clean.num_classes, images, probe, epochs),
                   strict=True), repeats=len(found))
    row |= {key: f"{function(found):.4f}"
            for key, function in (("mean", np.mean), ("least", min), ("most", max))}
    print(", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr)
    return row


def by_number(key: tuple[str, ...]) -> tuple:
    return key[0], int(key[3]), PROBES.index(key[4]), int(key[5] or 0)


if __name__ == "__main__":
    sys.exit(main())
