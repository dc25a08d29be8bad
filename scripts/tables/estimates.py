"""What a step will take, by what like ones took here: runs/timings.jsonl, a line for each."""

import contextlib
import json
import math
from collections.abc import Callable, Iterable
from pathlib import Path
from statistics import median

from core import files, reading
from core.errors import UserError
from scripts.tables.plan import Artefact

TIMINGS = Path("runs/timings.jsonl")
ALIKE = 10      # times the size of a timed step: further away what does not grow with it counts
NETWORK = ("architecture", "width")     # keys of a method, or of a section of it


class Estimates:
    """Seconds of the steps that were timed here, also by other runners since."""

    def __init__(self) -> None:
        self._read = 0              # bytes of the file so far
        self._same: dict[str, list[float]] = {}                             # key -> seconds
        self._like: dict[str, dict[float, list[float]]] = {}    # method and network -> work -> same
        self.refresh()

    def refresh(self) -> None:
        """Read what was added since."""
        found, self._read = read_timings(self._read)
        for key, seconds in found:
            self._same.setdefault(text_of(key), []).append(seconds)
            works = self._like.setdefault(alike_of(*key), {})
            works.setdefault(work_of(*key[:4]), []).append(seconds)

    def of(self, artefact: Artefact) -> float | None:
        """The median of what such a step took. Where none ever ran to its end here, that of its
        method's steps, with such a network on images of this size, that are nearest in work, in
        proportion; None if none is near."""
        key = key_of(artefact)
        if same := self._same.get(text_of(key)):
            return median(same)
        work, like = work_of(*key[:4]), self._like.get(alike_of(*key))
        if not like or not work:
            return None
        nearest = min(like, key=lambda other: abs(math.log(work / other)))
        if not 1 / ALIKE <= work / nearest <= ALIKE:
            return None
        return median(like[nearest]) * work / nearest

    def note(self, artefact: Artefact, seconds: float) -> None:
        """What a step took from its beginning to its end."""
        line = json.dumps({"key": key_of(artefact), "seconds": round(seconds, 1)})
        append_or_skip(TIMINGS, line.encode())
        self.refresh()


def key_of(artefact: Artefact) -> list:
    """What seconds depend on: not on the seed."""
    return [artefact.step.command, artefact.job.method, artefact.job.config, artefact.rows,
            list(artefact.image_shape)]


def text_of(key: list) -> str:
    return json.dumps(key, sort_keys=True)


def alike_of(command: str, method: str, config: dict, rows: int, *shape: object) -> str:
    """What steps share whose seconds are in proportion to their work."""
    sections = {"": config, **{key: value for key, value in config.items()
                               if isinstance(value, dict)}}
    network = {f"{name}.{key}": section[key] for name, section in sections.items()
               for key in NETWORK if key in section}
    return text_of([command, method, network, *shape])


def work_of(command: str, method: str, config: dict, rows: int) -> float:
    """How many images a step goes through: what seconds of one method are in proportion to."""
    if "batch_size" in config and config.get("steps") and command not in ("poison", "purify"):
        return float(config["steps"] * config["batch_size"])
    return float(rows * (config.get("epochs") or 1))


def read_timings(start: int = 0) -> tuple[list[tuple[list, float]], int]:
    """(key, seconds) of each line from a byte on, and where the next one will begin. Lines that are
    torn or not ours do not count."""
    found = []
    try:
        with reading.regular(TIMINGS) as file:
            file.seek(start)
            lines, end, _ = file.read().rpartition(b"\n")
    except (OSError, UserError):
        return found, start
    for line in lines.splitlines():
        with contextlib.suppress(ArithmeticError, AttributeError, KeyError, TypeError, ValueError):
            entry = reading.parse_json(line)
            command, method, config, rows, *_ = entry["key"]    # older ones have no shape
            seconds = float(entry["seconds"])
            if (0 <= seconds < math.inf and 0 < work_of(command, method, config, rows) < math.inf
                    and {type(command), type(method)} == {str}):
                found.append((entry["key"], seconds))
    return found, start + len(lines) + len(end)


def append_or_skip(path: Path, line: bytes) -> None:
    """Add a line to a side file, which helps and which no work needs. It begins one of its own,
    whatever a full disk tore off before."""
    files.operation("write", path)
    with contextlib.suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "a+b", buffering=0) as file:    # a pipe's would wait
            file.write(b"\n" + line + b"\n")


def total(times: list[float | None]) -> str:
    """One job's time for what has been timed here before, and how much has not."""
    known = [seconds for seconds in times if seconds is not None]
    unknown = len(times) - len(known)
    if not times:
        return "nothing to do"
    if not known:
        return "no estimate: none of them was ever timed here"
    text = f"estimate {about(sum(known))}"
    return f"{text} for {len(known)} of them, and {unknown} were never timed here" if unknown \
        else text


def chains(missing: Iterable[Artefact], seconds: Callable[[Artefact], float]
           ) -> dict[Artefact, float]:
    """Of artefacts in the order of their needs, each one's seconds with those of the longest chain
    that waits for it."""
    after = dict.fromkeys(missing, 0.0)
    for artefact in reversed(after):
        after[artefact] += seconds(artefact)
        for need in artefact.needs:
            if need in after:
                after[need] = max(after[need], after[artefact])
    return after


def left(missing: list[Artefact], timings: Estimates, jobs: int, begun: dict[Artefact, float]
         ) -> str:
    """'about 9 min left' with so many jobs, 'more than' where some were never timed, '' where none
    was, or these take no second. `missing` in the order of needs; `begun`: seconds since a command
    began."""
    times = {artefact: timings.of(artefact) for artefact in missing}
    known = {artefact: max(0.0, seconds - begun.get(artefact, 0.0))
             for artefact, seconds in times.items() if seconds is not None}
    if not known:
        return ""
    longest = chains(missing, lambda artefact: known.get(artefact, 0.0))
    seconds = max(sum(known.values()) / max(1, jobs), *longest.values())
    complete = len(known) == len(times)
    if not complete and seconds < 1:            # "more than 0 s" would say nothing
        return ""
    return f"{'about' if complete else 'more than'} {about(seconds)} left"


def about(seconds: float | None) -> str:
    """'40 s', '12 min' or '3.5 h'; '?' for None."""
    if seconds is None:
        return "?"
    if seconds < 100:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 6000 else f"{seconds / 3600:.1f} h"
