"""How far a table is that runs elsewhere, from what is on the disk: nothing is made or changed."""

from pathlib import Path

from core import records
from core.errors import UserError
from scripts.tables import claims, estimates, plan, workers


def names_of(cells: list[plan.Cell]) -> dict[plan.Artefact, str]:
    """What a record is called: its cell, or the first of several."""
    return {cell.record: str(cell) for cell in reversed(cells)}


def result_of(artefact: plan.Artefact) -> str:
    """'93.1 %' of a finished record, 'made' of what has no number."""
    if artefact.job.kind == "records":
        try:
            return f"{100 * records.load(artefact.out)['accuracy_last']:.1f} %"
        except UserError as error:
            return str(error)
    return "made"


def text(titles: str, cells: list[plan.Cell], missing: list[plan.Artefact],
         committed: dict[str, Path], timings: estimates.Estimates) -> str:
    """A line for all, then one for each artefact that is being made or that failed, and for each
    worker that lives."""
    names, held = names_of(cells), claims.held(missing)
    failed = {artefact: found for artefact in missing
              if artefact not in held and (found := claims.failure(artefact))}
    measured = sum(plan.place_of(cell.record, committed) is not None for cell in cells)
    left = estimates.left(missing, timings, len(held), {}) if missing else ""
    lines = [f"{titles}: {measured} of {len(cells)} cells measured; {len(missing)} artefacts to "
             f"make, {len(held)} of them being made, {len(failed)} failed{left and f'; {left}'}"]
    for artefact, who in held.items():
        lines.append(f"being made by {who}: {names.get(artefact, str(artefact))} "
                     f"({claims.log_of(artefact)})")
    lines += [f"failed: {names.get(artefact, str(artefact))}: {found.why}"
              for artefact, found in failed.items()]
    for folder, who in workers.alive().items():
        code = workers.code_of(folder)
        lines.append(f"worker: {who}" + (f", {code['version']}" if code else ""))
    return "\n".join(lines) + "\n"
