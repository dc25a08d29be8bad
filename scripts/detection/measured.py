"""What the probes score on sets that are known to be poisoned or clean: writes measured.csv.

    python -m scripts.detection.measured poison   em=runs/em lsp=runs/lsp --like digits
    python -m scripts.detection.measured clean    "test set=cifar10-test.npz" --like cifar10
    python -m scripts.detection.measured purified "lsp, dvae=runs/lsp-dvae"

A set is anything that data= takes. What is measured replaces its row of the file; the others stay.
"""

import sys
from collections.abc import Sequence

from core.command import Parser, command
from core.datasets import DataSettings, load
from core.errors import UserError
from scripts.detection import verdict
from scripts.detection.probes import EPOCHS, PROBES, sample, scores
from scripts.detection.rows import put
from scripts.detection.verdict import MEASURED

KINDS = ("poison", "clean", "purified")
IDENTITY = ("like", "kind", "name")
COLUMNS = ("like", "name", "kind", "images", *PROBES, "above")


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python -m scripts.detection.measured", __doc__)
    parser.add_argument("kind", choices=KINDS)
    parser.add_argument("set", nargs="+", metavar="NAME=SET")
    parser.add_argument("--like", help="the clean data set beside it (default: what SET was made "
                                       "from)")
    parser.add_argument("--probes", nargs="+", choices=PROBES, default=PROBES)
    arguments = parser.parse_args(argv)
    for word in arguments.set:
        name, equals, place = word.partition("=")
        if not (name and equals and place):
            raise UserError(f"{word}: write NAME=SET")
        row = {"name": name, "kind": arguments.kind,
               **row_of(place, arguments.like, arguments.probes)}
        print(", ".join(f"{key} {value}" for key, value in row.items()), file=sys.stderr)
        put(MEASURED, [row], COLUMNS, IDENTITY,
            lambda key: (key[0], KINDS.index(key[1]), key[2]))


def row_of(place: str, like: str | None, probes: Sequence[str]) -> dict:
    """The scores of a set, and the probes whose scores no clean set is expected to have."""
    suspect = sample(load(DataSettings(place), "SET"))
    reference = verdict.reference_of(suspect, like)
    if reference is None:
        raise UserError(f"{place}: no clean set of such images was measured; --like names one")
    found = scores(suspect, probes=probes)
    above = [line.probe for line in verdict.compare(found, len(suspect), EPOCHS, reference)
             if line.above]
    return {"like": reference, "images": len(suspect), "above": " ".join(above),
            **{probe: f"{score:.4f}" for probe, score in found.items()}}


if __name__ == "__main__":
    sys.exit(main())
