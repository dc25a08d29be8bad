"""Charts over a table's cells: D-VAE's figures 2a (draw_rate), 2b and 5 (draw_trade_off) and 3
(draw_epochs), LE's figure 3 and its kin (draw_sweep). Each function returns a figure.

One seed is drawn as points alone: a line through them would be a line through noise. Of several
seeds the means are joined, and their spread of accuracy (standard deviation) stands at each.
"""

import math
import statistics
from collections.abc import Iterable

import numpy as np

from core.distributed import note
from core.errors import UserError
from scripts.pictures import style
from scripts.pictures.style import MUTED, SERIES, looks_of, name_of
from scripts.tables.measure import Point
from scripts.tables.table import Table

STRENGTHS = {"kld": "KLD target, nats", "d": "channels", "t_star": "t*, steps of 1,000",
             "quality": "quality", "passes": "passes",                  # of `over`: no words
             "strength": "strength λ of the joint condition"}
DASHES = ((0, (6, 3)), (0, (1, 2)), (0, (4, 2, 1, 2)), (0, (3, 1, 1, 1, 1, 1)))


def seeds_text(counts: Iterable[int]) -> str:
    """Of how many seeds the points of a figure are, at most."""
    most = max(counts)
    return "1 seed" if most == 1 else f"{most} seeds: mean and standard deviation"


def seeds_of(measured: list[Point]) -> str:
    return seeds_text(len(point.accuracies) for point in measured)


def swept(measured: list[Point], row: str, family: str, by: str) -> list[Point]:
    """The points of one series, in the order of `by`, as far as they have it."""
    def known(point: Point) -> bool:
        value = getattr(point, by)
        return value is not None and math.isfinite(value)       # 0 is a value too

    series = [point for point in measured
              if (point.row, point.family) == (row, family) and point.value and known(point)]
    return sorted(series, key=lambda point: getattr(point, by))


def untouched(measured: list[Point], row: str | None) -> list[Point]:
    """Of a row without a defence; None: of the clean set."""
    return [point for point in measured if point.psnr_poisoned is None and not point.learner and (
        point.psnr_clean is None if row is None
        else point.row == row and point.psnr_clean is not None)]


def refuse_nothing(table: Table, found, shows: str) -> None:
    """Raise UserError that says what this figure shows and what the table has, if that is none."""
    if not found:
        columns = ", ".join(dict.fromkeys(column.family for column in table.columns))
        raise UserError(f"{table.path}: there is nothing to plot: this figure shows {shows}, and "
                        f"the columns there are {columns}")


def note_left_out(measured: list[Point], drawn: Iterable[tuple[str, str]]) -> None:
    """Say which columns a figure has no series of: those that nothing varies, or another does."""
    left = dict.fromkeys(f"{point.row} x {point.family}" for point in measured
                         if (point.psnr_poisoned is not None or point.learner)
                         and (point.row, point.family) not in drawn)
    if left:
        note(f"not in this figure, which plots what `over` varies: {', '.join(left)}")


def note_endless(measured: list[Point], *keys: str) -> None:
    """Say which points have an infinite PSNR, as of a set that was not changed."""
    endless = [f"{point.row} x {point.family} {point.value}" for point in measured
               if point.value and any(getattr(point, key) == math.inf for key in keys)]
    if endless:
        note(f"not in this figure, for their PSNR is infinite: {', '.join(endless)}")


def show_points(axis, x, series: list[Point], key: str, look: tuple[str, str], label: str,
                hollow: bool = False) -> None:
    """`key` of the points against x: joined where every one is the mean of several seeds."""
    colour, marker = look
    several = min(len(point.accuracies) for point in series) > 1
    spread = [statistics.stdev(point.accuracies) for point in series] \
        if several and key == "accuracy" else None
    axis.errorbar(x, [getattr(point, key) for point in series], spread, color=colour,
                  marker=marker, markersize=5.5, markerfacecolor="white" if hollow else colour,
                  linestyle="-" if several else "none", linewidth=1.2, elinewidth=1, capsize=2,
                  label=label, clip_on=False, zorder=3)


def show_level(axis, value: float, label: str, colour: str = MUTED, dash: int = 0) -> None:
    """A broken line at what is there without a purifier; the first is the clean set's."""
    if math.isfinite(value):
        axis.axhline(value, color=colour, linewidth=1.2, linestyle=DASHES[dash % len(DASHES)],
                     label=label)


# --- D-VAE -----------------------------------------------------------------------------------


def draw_rate(table: Table, measured: list[Point], data: str, arguments) -> object:
    """PSNR and accuracy against the KL divergence that VAEs reached."""
    lines = {row.name: swept(measured, row.name, "vae", "kld") for row in table.rows}
    lines = {row: line for row, line in lines.items() if line}
    refuse_nothing(table, lines, "a column `vae` with `over`, behind a poison")
    note_left_out(measured, [(row, "vae") for row in lines])
    note_endless([point for line in lines.values() for point in line], "psnr_poisoned",
                 "psnr_clean")
    looks = {row: SERIES[i % len(SERIES)] for i, row in enumerate(lines)}
    figure = style.sheet(3.7)
    left, right = figure.subplots(1, 2)
    for i, (row, line) in enumerate(lines.items(), 1):
        klds, name = [point.kld for point in line], name_of(row)
        show_points(left, klds, line, "psnr_poisoned", looks[row], name)
        show_points(left, klds, line, "psnr_clean", looks[row], f"{name}, to clean", hollow=True)
        show_points(right, klds, line, "accuracy", looks[row], name)
        for point in untouched(measured, row):
            show_level(right, point.accuracy, f"{name}, not purified", looks[row][0], i)
    for point in untouched(measured, None)[:1]:
        show_level(right, point.accuracy, "clean images")
    klds = [point.kld for line in lines.values() for point in line]
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 4, 8) if min(klds) / 2 < tick < max(klds) * 2]
    for axis in (left, right):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlim(min(klds) / 1.2, max(klds) * 1.2)
        axis.set_xlabel("KLD reached (nats per latent position)")
    left.set_ylabel("PSNR (dB), filled: to poisoned")
    style.accuracy_axis(right)
    for axis in (left, right):
        style.axis_style(axis)
    style.title(left, "what VAEs keep ...")
    style.title(right, "... and what a classifier learns from it")
    style.head(figure, f"{table.title}: VAEs on poisoned {data}, {seeds_of(measured)}")
    style.legend(figure, left, right)
    return figure


def draw_trade_off(table: Table, measured: list[Point], data: str, arguments) -> object:
    """Accuracy against PSNR: a series for each purifier with a strength."""
    by = f"psnr_{arguments.to}"
    rows = [row.name for row in table.rows
            if any(point.value for point in measured if point.row == row.name)]
    families = {column.family: column for column in table.columns}
    refuse_nothing(table, rows, "columns with `over`, behind a poison")
    figure = style.sheet(2.5 * len(rows) + 0.9)
    axes = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
    texts, levels, looks = {}, {}, looks_of(families)
    for axis, row in zip(axes, rows, strict=True):
        texts[row] = []
        for family, column in families.items():
            line = swept(measured, row, family, by)
            if not line:
                continue
            strength = " and ".join(STRENGTHS.get(name, name) for name in column.variables)
            show_points(axis, [getattr(point, by) for point in line], line, "accuracy",
                        looks[family], f"{name_of(family)} (number: {strength})")
            texts[row] += [(getattr(point, by), point.accuracy, point.value) for point in line]
        clean, poisoned = untouched(measured, None)[:1], untouched(measured, row)
        for point in clean:
            show_level(axis, point.accuracy, "clean images")
        for point in poisoned:
            show_level(axis, point.accuracy, "not purified", style.BAD, 1)
        levels[row] = [point.accuracy for point in (*clean, *poisoned)]
        axis.margins(x=0.06)
        style.accuracy_axis(axis)
        style.axis_style(axis)
        style.title(axis, name_of(row))
    axes[-1].set_xlabel(f"PSNR to the {arguments.to} image (dB)")
    style.head(figure, f"{table.title}: {data}, {seeds_of(measured)}")
    style.legend(figure, *axes, columns=2)
    note_left_out(measured, [(row, family) for row in rows for family in families
                             if swept(measured, row, family, by)])
    note_endless(measured, by)
    for axis, row in zip(axes, rows, strict=True):
        style.label_points(axis, texts[row], levels[row])
    return figure


def draw_epochs(table: Table, found: dict[tuple[str, str], np.ndarray], data: str, arguments
                ) -> object:
    """Accuracy after every epoch of training, poisoned and purified."""
    rows = [row.name for row in table.rows if sum(key[0] == row.name for key in found) > 1]
    alone = {key: curve for key, curve in found.items() if key[0] not in rows}
    refuse_nothing(table, rows, "rows with two columns and more, one line each")
    figure = style.sheet(2.4 * len(rows) + 0.9)
    axes = figure.subplots(len(rows), 1, squeeze=False, sharex=True)[:, 0]
    looks = looks_of(["clean"] * bool(alone) + [column for row, column in found if row in rows])
    for axis, row in zip(axes, rows, strict=True):
        shown = alone | {key: curve for key, curve in found.items() if key[0] == row}
        for i, (key, curve) in enumerate(shown.items()):
            family = key[1] if key[0] == row else "clean"
            name = name_of(family) if key[0] == row else f"{name_of(key[0])} images"
            colour, marker = looks[family]
            epochs, means = curve[0, :, 0], curve[..., 1].mean(0)
            several = len(curve) > 1
            # beside each other, where series would cover each other
            shift = (i - (len(shown) - 1) / 2) * 0.12
            axis.plot(epochs + (0 if several else shift), means, color=colour, marker=marker,
                      markersize=4.5, linestyle="-" if several else "none", linewidth=1.2,
                      label=name, clip_on=False, zorder=3)
            if several:
                spread = curve[..., 1].std(0, ddof=1)
                axis.fill_between(epochs, means - spread, means + spread, color=colour, alpha=0.2,
                                  linewidth=0)
        style.accuracy_axis(axis)
        style.axis_style(axis)
        style.title(axis, name_of(row))
    axes[-1].xaxis.get_major_locator().set_params(integer=True)
    axes[-1].set_xlabel("epoch of training")
    style.head(figure, f"{table.title}: {data}, {seeds_text(map(len, found.values()))}")
    style.legend(figure, *axes, columns=4)
    return figure


# --- LE --------------------------------------------------------------------------------------


def draw_sweep(table: Table, measured: list[Point], data: str, arguments) -> object:
    """PSNR and LPIPS to the clean image, and accuracy, against what the columns vary."""
    lines = {(row.name, family): swept(measured, row.name, family, "strength")
             for row in table.rows
             for family in dict.fromkeys(column.family for column in table.columns)}
    lines = {key: line for key, line in lines.items() if line}
    rows = list(dict.fromkeys(row for row, _ in lines))
    families = list(dict.fromkeys(family for _, family in lines))
    names = {name for column in table.columns for name in column.variables}
    values = sorted({point.strength for line in lines.values() for point in line})
    if len(names) != 1 or len(values) < 2:
        raise UserError(f"{table.path}: this figure plots one variable of `over` that has several "
                        f"values, not {', '.join(sorted(names)) or 'none'}")
    note_left_out(measured, lines)
    note_endless([point for line in lines.values() for point in line], "psnr_clean")
    [name] = names
    figure = style.sheet(6.3)
    axes = figure.subplots(3, 1, sharex=True)
    panels = (("psnr_clean", "PSNR to clean (dB)"), ("lpips_clean", "LPIPS to clean"),
              ("accuracy", ""))
    for axis, (key, label) in zip(axes, panels, strict=True):
        for i, ((row, family), line) in enumerate(lines.items()):
            text = name_of(row) if len(families) == 1 else f"{name_of(row)}, {name_of(family)}"
            # beside each other at every value, so that none covers another
            shift = (i - (len(lines) - 1) / 2) * 0.1
            show_points(axis, [values.index(point.strength) + shift for point in line], line, key,
                        SERIES[i % len(SERIES)], text)
        for i, row in enumerate(rows):
            colour, _ = SERIES[i * len(families) % len(SERIES)]         # of its first family
            for point in untouched(measured, row):
                show_level(axis, getattr(point, key), f"{name_of(row)}, not purified", colour,
                           i + 1)
        for point in untouched(measured, None)[:1] if key == "accuracy" else []:
            show_level(axis, point.accuracy, "clean images")
        axis.set_xticks(range(len(values)), [f"{value:g}" for value in values])
        axis.set_ylabel(label)
        if key == "lpips_clean":
            axis.set_ylim(bottom=0)
        if key == "accuracy":
            style.accuracy_axis(axis)
        style.axis_style(axis)
    axes[-1].set_xlabel(STRENGTHS.get(name, name))
    style.head(figure, f"{table.title}: {data}, {seeds_of(measured)}")
    style.legend(figure, *axes)
    return figure
