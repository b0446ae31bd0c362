"""SVG elements whose text and attributes are escaped.

>>> print(element("text", "a < b", x=1.25, class_="name"))
<text x="1.25" class="name">a &lt; b</text>
"""

from __future__ import annotations

import math
import unicodedata

from markupsafe import Markup, escape

from jaxspec.names import visible

_TEXT = "\n\t\u200c\u200d"
"""Not printable for Python, but text: line breaks, tabs, and the (non-)joiners of scripts and
emoji."""


def shown(text: str) -> str:
    """Text for a page: what is no text, such as control characters, is written out.

    Line breaks, tabs, every kind of space and the characters that join letters, or do not, stay.
    """
    return "".join(
        char if char in _TEXT or unicodedata.category(char) == "Zs" else visible(char)
        for char in text
    )


def element(name: str, *children: object, **attributes: object) -> Markup:
    """An element; texts are escaped, and elements are kept.

    Args:
      name: of the element.
      *children: texts and elements.
      **attributes: `class_` gives "class", `text_anchor` gives "text-anchor". Those that are None
        are left out.
    """
    written = [
        f' {key.rstrip("_").replace("_", "-")}="{escape(_value(value))}"'
        for key, value in attributes.items()
        if value is not None
    ]
    inside = "".join(map(_child, children))
    return Markup(f"<{name}{''.join(written)}>{inside}</{name}>")


def ticks(low: float, high: float, *, most: int = 5) -> list[float]:
    """Round numbers from `low` to `high`, about `most` of them.

    >>> ticks(0, 2.3)
    [0.0, 0.5, 1.0, 1.5, 2.0]
    """
    if not high > low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= rough * 0.999)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _child(child: object) -> str:
    return str(child) if isinstance(child, Markup) else str(escape(shown(str(child))))


def _value(value: object) -> str:
    return f"{value:.6g}" if isinstance(value, float) else shown(str(value))
