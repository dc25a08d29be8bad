"""Make every missing artefact of a table, each once.

    python scripts/run_table.py configs/tables/NAME.yaml ... [--quick | --small] [key=value ...]

key=value goes to every command (data=, root=, device=, threads=). Goes on after a failure and says
at the end what failed and why. Repeating the line resumes; what is done, or committed under
results/, is not done again (--anew makes what is committed once more, in runs/). The same line on
several terminals shares the work; --worker does so on several hosts of one file system, and
--status says how far they are. Each command's stderr is in runs/logs/. Then:
python scripts/table.py with the same words prints the table.
"""

import contextlib
import os
import shlex
from pathlib import Path

import torch

from core import files, records
from core.command import Parser, command, positive
from core.distributed import note, say
from core.errors import UserError
from core.workfolder import otherwise
from scripts.tables import estimates, keys, noted, plan, spec, status, workers
from scripts.tables.estimates import Estimates, about
from scripts.tables.schedule import Scheduler, free_cores
from scripts.tables.table import Choice


@command
def main(argv: list[str] | None = None) -> None:
    parser = Parser("python scripts/run_table.py", __doc__)
    parser.add_argument("words", nargs="+", metavar="TABLE.yaml | key=value")
    Choice.add_to(parser)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and an estimate")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="commands at once")
    parser.add_argument("--worker", action="store_true",
                        help="one of several on this runs/, perhaps on other hosts: needs a file "
                             "system with locks, and the others' commit")
    parser.add_argument("--status", action="store_true",
                        help="print how far it is, who makes what, and what failed; make nothing")
    parser.add_argument("--sets", action="store_true",
                        help="also the sets and checkpoints behind records that are there: figures "
                             "read them")
    parser.add_argument("--anew", action="store_true",
                        help="also records that results/ has: to see whether they come again")
    arguments = parser.parse_intermixed_args(argv)
    paths = [word for word in arguments.words if "=" not in word]
    settings = tuple(word for word in arguments.words if "=" in word)
    if not paths:
        raise UserError("name a table: configs/tables/NAME.yaml")
    if arguments.jobs > 1 and not any(word.startswith("threads=") for word in settings):
        settings += (f"threads={max(1, free_cores() // arguments.jobs)}",)

    choice = Choice.of(arguments)
    tables = [table for path in paths for table in spec.read(path, choice, settings)]
    if others := keys.left_out(tables):
        note(f"{', '.join(tables[0].typed)}: cells of other learners keep theirs "
             f"({', '.join(others)})")
    torch.set_num_threads(1)                # a process that used several cannot be forked
    cells = plan.cells_of(tables, fetch=not (arguments.dry_run or arguments.status))
    committed = {} if arguments.anew else records.committed()
    missing = plan.wanted(cells, committed, sets=arguments.sets)
    timings = Estimates()
    titles = "; ".join(table.title for table in tables)
    if arguments.status:
        print(status.text(titles, cells, missing, committed, timings), end="")
        return
    say_made_otherwise(cells, committed)
    # Now, not after what they stand on was trained.
    for check in dict.fromkeys(artefact.check for artefact in missing):
        check()
    times = [timings.of(artefact) for artefact in missing]
    alone = ", one job at a time" if arguments.jobs > 1 and set(times) - {None} else ""
    say(f"{titles}: {len(cells)} cells; {len(missing)} artefacts to make; {estimates.total(times)}"
        + alone)
    if arguments.dry_run:
        for artefact, seconds in zip(missing, times, strict=True):
            print(f"{about(seconds):>12}  python {shlex.join(artefact.line)}")
        return
    noted.note((*paths, *choice.words, *settings), cells, sets=arguments.sets)
    typed = any(word.startswith("device=") for word in settings)
    names = status.names_of(cells)
    written = {table.path: files.sha256(Path(table.path)) for table in tables}
    with workers.enlisted() if arguments.worker else contextlib.nullcontext(workers.nothing) as ask:
        failed = Scheduler(missing, arguments.jobs, [] if typed else visible_gpus(), names,
                           timings, ask).run()
    for path, digest in written.items():
        if not Path(path).exists() or files.sha256(Path(path)) != digest:
            say(f"{path} was changed meanwhile; the same line makes what it says now")
    if failed:
        broken = [(cell, cause) for cell in cells if (cause := next(
            (failed[made] for made in plan.behind([cell.record]) if made in failed), None))]
        for cell, cause in broken:
            say(f"{cell}: {cause}")
        raise UserError(f"{len(broken)} of {len(cells)} cells failed; mend the causes above and "
                        "repeat the same line")


def say_made_otherwise(cells: list[plan.Cell], committed: dict[str, Path]) -> None:
    """Where finished records have another precision than the one asked for, which they are not
    known by."""
    places = [(plan.place_of(cell.record, committed), cell.record.device) for cell in cells]
    found = [f"{place} is already done{text}" for place, asked in places
             if place is not None and (text := otherwise(place, asked))]
    if found:
        say(f"{found[0]} ({len(found)} such record{'s' if len(found) > 1 else ''})")


def visible_gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name, where there are several; else nothing to choose."""
    count = torch.cuda.device_count()
    names = os.environ.get("CUDA_VISIBLE_DEVICES", ",".join(map(str, range(count)))).split(",")
    return names[:count] if count > 1 else []
