"""Line charts over a table's cells: what the paper's figures plot. Each function prints its numbers
to stdout and returns a matplotlib figure."""

import math
import statistics

from core.errors import UserError
from core.names import markdown_cell
from scripts.pictures.style import (
    BAD,
    GOOD,
    INK,
    MUTED,
    PLAIN,
    SERIES,
    axis_style,
    end_labels,
    pyplot,
)
from scripts.tables import plan, spec
from scripts.tables.measure import Point, curves, points, print_points

TITLES = {"em": "EM", "lsp": "LSP", "none": "not purified", "vae": "VAE", "ae": "AE",
          "jpeg": "JPEG", "dvae": "D-VAE", "jcdp": "JCDP"}
STRENGTHS = {"kld": "KLD target", "d": "channels", "t_star": "t*",      # of `over`: no words
             "strength": "strength λ of the joint condition"}
COLOURS = {"none": BAD, "vae": GOOD, "dvae": GOOD, "jpeg": "#b07a2e", "ae": "#7d5a94"}


def title_of(name: str) -> str:
    return TITLES.get(name, name)


def seeds_of(table: spec.Table) -> str:
    return f"{len(table.seeds)} seed{'s' if len(table.seeds) > 1 else ''}"


def swept(measured: list[Point], row: str, family: str, by: str) -> list[Point]:
    """The points of one line, in the order of `by`, as far as they have it."""
    def known(point: Point) -> bool:
        value = getattr(point, by)
        return value is not None and math.isfinite(value)       # 0 is a value too

    line = [point for point in measured
            if (point.row, point.family) == (row, family) and point.value and known(point)]
    return sorted(line, key=lambda point: getattr(point, by))


def references(axis, measured: list[Point], rows: dict[str, str]) -> None:
    """Dotted lines at the accuracies without a purifier: {row: colour}."""
    for point in measured:
        if point.psnr_poisoned is None and point.row in rows:
            axis.axhline(point.accuracy, color=rows[point.row], linewidth=0.9, linestyle=":")
            name = "clean" if point.psnr_clean is None else f"{title_of(point.row)}, not purified"
            axis.annotate(name, (1, point.accuracy), xycoords=("axes fraction", "data"),
                          xytext=(-2, 2), textcoords="offset points", fontsize=7.5,
                          color=rows[point.row], ha="right", va="bottom")


def accuracy_limits(axis, measured: list[Point]) -> None:
    """From a little under the lowest accuracy to a little over 100 %."""
    axis.set_ylim(max(0, min(min(point.accuracies) for point in measured) - 8), 103)


def accuracy_line(axis, line: list[Point], by: str, colour: str) -> None:
    """Accuracy against `by`, with the spread over seeds where there are several."""
    x, y = [getattr(point, by) for point in line], [point.accuracy for point in line]
    errors = [statistics.stdev(point.accuracies) if len(point.accuracies) > 1 else 0
              for point in line]
    axis.errorbar(x, y, errors if any(errors) else None, color=colour, linewidth=1.6, marker="o",
                  markersize=4, elinewidth=0.8)


def draw_rate(table: spec.Table, cells: list[plan.Cell], data: str, arguments) -> object:
    """PSNR and accuracy against the KL divergence that VAEs reached."""
    measured = points(table, cells)
    print_points(measured)
    lines = {row.name: swept(measured, row.name, "vae", "kld") for row in table.rows}
    lines = {row: line for row, line in lines.items() if line}
    colours = dict(zip(lines, SERIES, strict=False))
    figure, (left, right) = pyplot().subplots(1, 2, figsize=(11.4, 4), gridspec_kw={"wspace": 0.52})
    kept, learnt = [], []           # labels
    for row, line in lines.items():
        klds, colour = [point.kld for point in line], colours[row]
        for key, style, to in (("psnr_poisoned", "-", "poisoned"), ("psnr_clean", "--", "clean")):
            values = [getattr(point, key) for point in line]
            left.plot(klds, values, style, color=colour, linewidth=1.6, marker="o", markersize=4)
            kept.append((values[-1], f"{title_of(row)}, to {to}", colour))
        accuracy_line(right, line, "kld", colour)
        learnt.append((line[-1].accuracy, title_of(row), colour))
    references(right, measured, {"clean": MUTED, **colours})
    klds = [point.kld for line in lines.values() for point in line]
    left.set_ylabel("PSNR of the reconstruction (dB)")
    right.set_ylabel("clean test accuracy (%)")
    accuracy_limits(right, measured)
    ticks = [tick for tick in (0.1, 0.2, 0.5, 1, 2, 4, 8) if min(klds) / 2 < tick < max(klds) * 2]
    for axis, labels in ((left, kept), (right, learnt)):
        axis.set_xscale("log")
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.set_xlim(min(klds) / 1.15, max(klds) * 1.05)
        axis.set_xlabel("KLD reached (nats per latent position)")
        axis_style(axis)
        end_labels(axis, max(klds), labels)
    left.set_title(f"VAEs on poisoned {data}, {seeds_of(table)}: what is kept ...", fontsize=10,
                   color=INK, loc="left")
    right.set_title("... and what a classifier learns from it", fontsize=10, color=INK, loc="left")
    return figure


def draw_trade_off(table: spec.Table, cells: list[plan.Cell], data: str, arguments) -> object:
    """Accuracy against PSNR: a line for each purifier with a strength."""
    measured, by = points(table, cells), f"psnr_{arguments.to}"
    print_points(measured)
    rows = [row.name for row in table.rows
            if any(point.value for point in measured if point.row == row.name)]
    figure, axes = pyplot().subplots(1, len(rows), figsize=(5.6 * len(rows), 4.2), squeeze=False,
                                     sharey=True, gridspec_kw={"wspace": 0.1})
    for axis, row in zip(axes[0], rows, strict=True):
        for i, family in enumerate(dict.fromkeys(column.family for column in table.columns)):
            line = swept(measured, row, family, by)
            if not line:
                continue
            colour = COLOURS.get(family, PLAIN)
            accuracy_line(axis, line, by, colour)
            for point in line:
                axis.annotate(point.value, (getattr(point, by), point.accuracy), fontsize=7.5,
                              color=colour, xytext=(-3 if i % 2 else 3, 3), va="bottom",
                              ha="right" if i % 2 else "left", textcoords="offset points")
            over = next(column.variables for column in table.columns if column.family == family)
            strength = " and ".join(STRENGTHS.get(name, name) for name in over)
            axis.plot([], [], color=colour, marker="o", markersize=4, linewidth=1.6,
                      label=f"{title_of(family)}, at its {strength}")
        references(axis, measured, {"clean": MUTED, row: BAD})
        axis.legend(fontsize=8.5, loc="lower left", labelcolor="linecolor", framealpha=1,
                    edgecolor="white")
        axis.margins(x=0.08)
        axis.set_xlabel(f"PSNR to the {arguments.to} image (dB)")
        accuracy_limits(axis, measured)
        axis_style(axis)
        axis.set_title(f"{title_of(row)} on {data}, {seeds_of(table)}", fontsize=10, color=INK,
                       loc="left")
    axes[0][0].set_ylabel("clean test accuracy (%)")
    return figure


def draw_sweep(table: spec.Table, cells: list[plan.Cell], data: str, arguments) -> object:
    """PSNR and LPIPS to the clean image, and accuracy, against what the columns vary."""
    measured = points(table, cells, perceptual=True)
    print_points(measured)
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
    [name] = names
    place = {value: value for value in values}
    log = values[0] >= 0 and values[-1] > 20 * values[1]
    if log and values[0] == 0:          # on a log axis: a step left of the smallest
        place[0.0] = values[1] / 4
    figure, axes = pyplot().subplots(1, 3, figsize=(15, 4), gridspec_kw={"wspace": 0.5})
    panels = (("psnr_clean", "PSNR to the clean image (dB)"),
              ("lpips_clean", "LPIPS to the clean image (SqueezeNet)"),
              ("accuracy", "clean test accuracy (%)"))
    for axis, (key, label) in zip(axes, panels, strict=True):
        labels = []
        for (row, family), line in lines.items():
            colour = SERIES[rows.index(row)]
            style = ("-", "--", ":")[families.index(family) % 3]
            x, y = [place[point.strength] for point in line], [getattr(p, key) for p in line]
            axis.plot(x, y, style, color=colour, linewidth=1.6, marker="o", markersize=4)
            text = title_of(row) if len(families) == 1 else f"{title_of(row)}, {title_of(family)}"
            labels.append((y[-1], text, colour))
        for row in rows:
            untouched = [p for p in measured if p.row == row and p.psnr_poisoned is None]
            for point in untouched:
                axis.axhline(getattr(point, key), color=SERIES[rows.index(row)], linewidth=0.9,
                             linestyle=(0, (1, 3)))
        if log:
            axis.set_xscale("log")
        axis.set_xticks(list(place.values()), [f"{value:g}" for value in place])
        axis.minorticks_off()
        axis.set_xlabel(STRENGTHS.get(name, name))
        axis.set_ylabel(label)
        axis_style(axis)
        end_labels(axis, max(place.values()), labels)
    axes[0].set_title(f"{table.title}, on {data}, {seeds_of(table)}; dotted: not purified",
                      fontsize=10, color=INK, loc="left")
    return figure


def draw_epochs(table: spec.Table, cells: list[plan.Cell], data: str, arguments) -> object:
    """Accuracy after every epoch of training, poisoned and purified."""
    found = curves(cells)
    rows = [row.name for row in table.rows if sum(key[0] == row.name for key in found) > 1]
    alone = {key: curve for key, curve in found.items() if key[0] not in rows}
    figure, axes = pyplot().subplots(1, len(rows), figsize=(5.4 * len(rows), 3.9), squeeze=False,
                                     sharey=True, gridspec_kw={"wspace": 0.32})
    print("| trained on | " + " | ".join(
        f"epoch {epoch:.0f}" for epoch in next(iter(found.values()))[0, :, 0]) + " |")
    print("|---" * (next(iter(found.values())).shape[1] + 1) + "|")
    for key, curve in found.items():
        print(f"| {markdown_cell(' x '.join(key))} | "
              + " | ".join(f"{v:.1f}" for v in curve[..., 1].mean(0)) + " |")
    for axis, row in zip(axes[0], rows, strict=True):
        labels = []
        for key, curve in (alone | {k: v for k, v in found.items() if k[0] == row}).items():
            own = key[0] == row
            colour = COLOURS.get(key[1], PLAIN) if own else MUTED
            means = curve[..., 1].mean(0)
            for seed in curve:
                axis.plot(*seed.T, color=colour, linewidth=0.7, alpha=0.5)
            axis.plot(curve[0, :, 0], means, color=colour, linewidth=1.8)
            labels.append((means[-1], title_of(key[1] if own else key[0]), colour))
        axis.set_ylim(0, 103)
        axis.set_xlim(1, curve[0, -1, 0])
        axis.set_xlabel("epoch of training")
        axis_style(axis)
        axis.set_title(f"{title_of(row)} on {data}, {seeds_of(table)}", fontsize=10, color=INK,
                       loc="left")
        end_labels(axis, curve[0, -1, 0], labels)
    axes[0][0].set_ylabel("clean test accuracy (%)")
    return figure
