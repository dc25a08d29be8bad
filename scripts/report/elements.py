"""HTML elements. Text is escaped wherever it comes from; only what was made here is markup."""

import base64
import html
from urllib.parse import quote

from core.names import printable

# Elements that begin a line, so that git shows which of them changed.
BLOCKS = ("article", "div", "dl", "figure", "h3", "h4", "li", "ol", "p", "pre", "section", "svg",
          "table", "tbody", "tr")


class Markup(str):
    """HTML that was made here, and stands as it is."""


def tag(name: str, *children: object, **attributes: object) -> Markup:
    """An element. Of its children, Markup stands as it is, None is left out, all else is text. An
    attribute that is True stands alone, one that is None or False is left out; `class_` is class,
    `data_x` is data-x."""
    words = "".join(
        f" {key.rstrip('_').replace('_', '-')}"
        + ("" if value is True else f'="{text(value)}"')
        for key, value in attributes.items() if value not in (None, False))
    start = f"\n<{name}{words}>" if name in BLOCKS else f"<{name}{words}>"
    return Markup(start if name == "img" else f"{start}{join(children)}</{name}>")


def join(children, between: str = "") -> Markup:
    return Markup(between.join(text(child) for child in children if child is not None))


def text(value: object) -> Markup:
    """On one line, as it reads."""
    return value if isinstance(value, Markup) else Markup(html.escape(printable(value)))


def lines(value: str) -> Markup:
    """Of several lines, for <pre>."""
    return join(map(text, value.splitlines()), "\n")


def link(target: str, *children: object, **attributes: object) -> Markup:
    """To a path, seen from the page, or to a part of it (#...)."""
    where = target if target.startswith("#") else quote(target)
    return tag("a", *children, href=where, **attributes)


def image(source: str | bytes, said: str) -> Markup:
    """A PNG: its path, seen from the page, or its bytes, which the page then holds."""
    if isinstance(source, bytes):
        source = Markup(f"data:image/png;base64,{base64.b64encode(source).decode()}")
    else:
        source = quote(source)
    return tag("img", src=source, alt=said, loading="lazy")
