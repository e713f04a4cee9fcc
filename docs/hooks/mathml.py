"""Equations become MathML when the site is built: browsers draw it themselves, so no script is fetched or shipped."""

from __future__ import annotations

import html
import re

from latex2mathml.converter import convert

INLINE = re.compile(r'<span class="arithmatex">\\\((.*?)\\\)</span>', re.DOTALL)
DISPLAY = re.compile(r'<div class="arithmatex">\\\[(.*?)\\\]</div>', re.DOTALL)
# what the converter does not know, in words it knows
PLAIN = {r"\mathrel{+}=": r"\mathrel{{+}{=}}", r"\tfrac": r"\frac", r"\textstyle": "", r"\displaystyle": "",
         r"\middle": "", r"\argmax": r"\operatorname{argmax}", r"\bar w": r"\bar{w}"}  # fmt: skip


def on_page_content(content: str, **_) -> str:
    """MkDocs calls this with each page's HTML."""
    content = DISPLAY.sub(lambda found: mathml(found[1], "block"), content)
    return INLINE.sub(lambda found: mathml(found[1], "inline"), content)


def mathml(latex: str, display: str) -> str:
    """One equation."""
    latex = html.unescape(latex)
    for ours, theirs in PLAIN.items():
        latex = latex.replace(ours, theirs)
    return convert(latex, display=display)
