"""Decode a folder of pictures, one folder a class, into an image set, once.

    python scripts/import_folder.py photos/train --size 224 --test photos/val [--out DIR]
    python scripts/import_folder.py photos/train --size 224 --skip-damaged

The set is memory-mapped wherever it is used (data=DIR), so it may be larger than memory. A picture
becomes size x size pixels, bilinear and antialiased, by --fit: `squash` (both sides resized alike,
as D-VAE's 224 set), `crop` (the shorter side resized, the centre kept, as data=folder:PATH), or
`centre` (the shorter side resized to 8/7 of the size, the centre kept: test images). What is a
class and an image is said in core/pictures.py. files.txt has the name of every row. The test folder
becomes a set of its own beside OUT, by `centre`. A damaged picture stops the work by its name,
unless --skip-damaged leaves it out. Killed, the same line goes on.
"""

import argparse
import os
from itertools import zip_longest
from pathlib import Path
from typing import get_args

import numpy as np

from core import decoding, pictures, streams
from core.command import Parser, command, positive
from core.config import as_path
from core.datasets import note_missing_classes
from core.decoding import How, Listing
from core.errors import UserError
from core.imageset import ImageSet
from core.job import Job
from core.names import chosen_name, name_at
from core.remembered import place


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/import_folder.py", __doc__)
    parser.add_argument("folder", type=as_path, metavar="FOLDER")
    parser.add_argument("--size", type=positive, required=True, help="side in pixels")
    parser.add_argument("--fit", choices=get_args(pictures.Fit), default="squash")
    parser.add_argument("--test", type=as_path, metavar="DIR",
                        help="the test images, a folder a class too")
    parser.add_argument("--skip-damaged", action="store_true",
                        help="leave damaged pictures out, and name them")
    parser.add_argument("--shuffled", action="store_true",
                        help="rows in a random order, for learners that shuffle by blocks")
    parser.add_argument("--out", type=as_path, help="the folder to make (runs/sets/...)")
    parser.add_argument("--name", help="of the data set (the folder's)")
    parser.add_argument("--force", action="store_true",
                        help="move other work in the way aside (finished) or drop it (unfinished)")
    arguments = parser.parse_args(argv)
    name = chosen_name(arguments.name, name_at(os.path.abspath(arguments.folder)))

    train, test = listing_of(arguments, arguments.folder), None
    job = decoding.job_of(train, how_of(arguments, arguments.fit), name)
    out = arguments.out or job.default_out
    check_apart(arguments, out)
    if arguments.test is not None:
        there = out.with_name(f"{out.name}-test")
        listing = listing_of(arguments, arguments.test)
        for label, (its, ours) in enumerate(zip_longest(listing.classes, train.classes)):
            if its is not None and its != ours:
                raise UserError(f"--test: class {label} of {arguments.test} is '{its}', and "
                                + (f"'{ours}' of {arguments.folder}: name their folders alike"
                                   if ours else f"{arguments.folder} has no such class"))
        how = how_of(arguments, "centre")
        make(listing, how, decoding.job_of(listing, how, name), there, None, arguments, name)
        test = {"data": place(there)}
    made = make(train, how_of(arguments, arguments.fit), job, out, test, arguments, name)
    note_missing_classes(made, str(out))
    print(out)


def check_apart(arguments: argparse.Namespace, out: Path) -> None:
    """Raise UserError where a folder that is read is the other one, or would hold OUT."""
    for option, folder in (("FOLDER", arguments.folder), ("--test", arguments.test)):
        if folder is not None and out.resolve().is_relative_to(folder.resolve()):
            raise UserError(f"--out: {out} lies in {folder}, which is read as {option}; name a "
                            "folder elsewhere")
    if arguments.test is not None and arguments.test.resolve() == arguments.folder.resolve():
        raise UserError(f"--test: {arguments.test} is the folder that is trained on; name another")


def how_of(arguments: argparse.Namespace, fit: pictures.Fit) -> How:
    return How(arguments.size, fit, arguments.skip_damaged)


def listing_of(arguments: argparse.Namespace, folder: Path, notes: bool = True) -> Listing:
    """The folder's pictures, in the order that they will have."""
    classes, files, labels = pictures.list_classes(folder, notes=notes)
    if arguments.shuffled:
        order = streams.rng(0, "decode").permutation(len(files))
        files, labels = [files[row] for row in order], labels[order]
    return Listing(folder, classes, files, np.asarray(labels))


def make(listing: Listing, how: How, job: Job, out: Path, test: dict | None,
         arguments: argparse.Namespace, name: str) -> ImageSet:
    """The set at OUT."""
    decoding.decode(listing, how, job, out, name=name, root={"data": place(out)}, test=test,
                    again=lambda: listing_of(arguments, listing.folder, notes=False),
                    force=arguments.force, option="--out")
    return ImageSet.load(out)
