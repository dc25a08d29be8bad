"""Training curves as small drawings: accuracy on the set itself as a line, on clean test images as
points, of which the smallest drawings have the last alone."""

from scripts.report.elements import Markup, tag, text

MOST_POINTS = 60        # of a line: more are not seen at this size
CARD = (340, 130)       # width and height of a card's drawing, whose axes are drawn once a page
CARD_EDGES = (26, 8, 5, 16)     # around it: left, right, top, below


def curve(trained: list[tuple[float, float]], tested: list[tuple[float, float]],
          width: int, height: int, *, labels: bool = False) -> Markup | None:
    """An SVG of (epoch, accuracy in [0, 1]); None without any."""
    if not trained and not tested:
        return None
    last = max(1.0, *(epoch for epoch, _ in (*trained, *tested)))
    left, right, top, low = CARD_EDGES if labels else (2, 3, 2, 2)

    def at(point: tuple[float, float]) -> str:
        x = left + point[0] / last * (width - left - right)
        y = top + (1 - point[1]) * (height - top - low)
        return f"{x:.0f},{y:.0f}"

    def dot(point: tuple[float, float]) -> Markup:
        x, y = at(point).split(",")
        return tag("circle", cx=x, cy=y, r=3 if labels else 2)

    step = -(-len(trained) // MOST_POINTS) or 1
    shown = [*trained[:-1:step], *trained[-1:]]
    parts = [tag("polyline", points=" ".join(map(at, shown)), class_="trained") if shown else None,
             tag("polyline", points=" ".join(map(at, tested)), class_="tested")
             if len(tested) > 1 else None]
    parts += map(dot, tested if labels and len(tested) <= MOST_POINTS else tested[-1:])
    if labels:
        parts += [tag("use", href="#axes"),
                  tag("text", f"epoch {last:g}", x=width - right, y=height - 3,
                      text_anchor="end")]
    said = ", ".join(f"{100 * accuracy:.1f} % after epoch {epoch:g}"
                     for epoch, accuracy in tested[-1:])
    title = None if labels else tag("title", text(f"clean test accuracy {said}"))   # a card says it
    return tag("svg", title, *parts, viewBox=f"0 0 {width} {height}",
               class_="curve" if labels else "spark", role="img")


def axes() -> Markup:
    """What all cards' drawings have behind them, an SVG that is not seen by itself."""
    (width, height), (left, right, top, low) = CARD, CARD_EDGES
    parts = []
    for share, word in ((0, "0"), (0.5, "50"), (1, "100")):
        y = top + (1 - share) * (height - top - low)
        parts += [tag("line", x1=left, x2=width - right, y1=y, y2=y, class_="grid"),
                  tag("text", word, x=left - 4, y=y + 3, text_anchor="end")]
    parts += [tag("text", "0", x=left, y=height - 3),
              tag("text", "line: its own training set; points: test images",
                  x=left + 20, y=height - 3)]
    return tag("svg", tag("defs", tag("g", *parts, id="axes")), width=0, height=0,
               class_="unseen", aria_hidden="true")
