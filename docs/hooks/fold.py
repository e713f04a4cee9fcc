"""Long tables of the research record under a line that opens them, so that the findings stay in sight; on the site only."""

from __future__ import annotations

import re

PAGES = ("results/", "catalogue.md", "components.md", "claims.md")
ROWS = 8  # a table of more is folded; 8 fill about half a screen


def on_page_markdown(markdown: str, page, **_) -> str:
    """MkDocs calls this with each page's text."""
    return folded(markdown) if page.file.src_uri.startswith(PAGES) else markdown


def folded(words: str) -> str:
    """The same with its long tables folded."""

    def fold(found: re.Match[str]) -> str:
        rows = found[0].strip().split("\n")
        if len(rows) - 2 <= ROWS:
            return found[0]
        inside = "\n".join("    " + row for row in rows)
        return f'??? note "The table: {len(rows) - 2} rows"\n\n{inside}\n'

    return re.sub(r"(?:^\|.*(?:\n|$))+", fold, words, flags=re.MULTILINE)
