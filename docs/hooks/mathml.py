"""Equations become MathML when the site is built: browsers draw it themselves, so no script is fetched or shipped."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert
from mkdocs.exceptions import PluginError

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
# what the converter does not know, in words it knows
PLAIN = {r"\mathrel{+}=": r"\mathrel{{+}{=}}", r"\tfrac": r"\frac", r"\textstyle": "", r"\displaystyle": "",
         r"\middle": "", r"\bar w": r"\bar{w}"}  # fmt: skip
NAMES = {"langle": "⟨", "rangle": "⟩", "arg": r"\operatorname{arg}", "argmax": r"\operatorname{argmax}",
         "argmin": r"\operatorname{argmin}"}  # fmt: skip


def on_page_content(content: str, page, **_) -> str:
    """MkDocs calls this with each page's HTML.

    Raises:
        PluginError: a command that the converter does not know would stand on the page with its backslash.
    """
    content = DISPLAY.sub(lambda found: _alone(mathml(found[1], "block", page.file.src_uri)), content)
    return INLINE.sub(lambda found: mathml(found[1], "inline", page.file.src_uri), content)


def _alone(equation: str) -> str:
    """A displayed equation, in a box that scrolls where the screen is narrower: MathML does not scroll by itself."""
    return f'<div class="equation">{equation}</div>'


def mathml(latex: str, display: str, where: str = "") -> str:
    """One equation."""
    latex = html.unescape(latex)
    plain = latex
    for ours, theirs in PLAIN.items():
        plain = plain.replace(ours, theirs)
    plain = re.sub(r"\\([A-Za-z]+)", lambda found: NAMES.get(found[1], found[0]), plain)
    made = convert(plain, display=display)
    unknown = re.findall(r"\\[A-Za-z]+", re.sub(r"<[^>]*>", " ", html.unescape(made)))
    if unknown:
        raise PluginError(
            f"{where}: {', '.join(sorted(set(unknown)))} in {latex!r} cannot be drawn. Write it another way, or teach "
            "docs/hooks/mathml.py its name"
        )
    return made
