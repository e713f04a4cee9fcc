"""Long tables and lists of the research record under a line that opens them, so that findings stay in sight; on the site."""

from __future__ import annotations

import re

PAGES = ("results/", "catalogue.md", "components.md", "claims.md")
ROWS = 5  # a table or list of more is folded; 5 fill a third of a screen


def on_page_markdown(markdown: str, page, **_) -> str:
    """MkDocs calls this with each page's text."""
    if page.file.src_uri == "log.md":
        return headlines(markdown)
    return folded(markdown) if page.file.src_uri.startswith(PAGES) else markdown


def headlines(words: str) -> str:
    """The log's entries under their first words, the bold ones: a page to look over, where a click opens an entry."""
    head, *entries = re.split(r"^\* (?=\*\*)", words, flags=re.MULTILINE)
    made = [head]
    for entry in entries:
        _, title, text = entry.split("**", 2)
        said = " ".join(title.split()).rstrip(".").replace('"', "'")
        lines = [line.removeprefix("  ") for line in text.strip().split("\n")]
        made.append(f'??? note "{said}"\n\n' + "".join(f"    {line}".rstrip() + "\n" for line in lines) + "\n")
    return "".join(made)


def folded(words: str) -> str:
    """The same with its long tables and lists folded."""

    def fold(found: re.Match[str]) -> str:
        rows = found[0].strip().split("\n")
        if len(rows) - 2 <= ROWS:
            return found[0]
        inside = "\n".join("    " + row for row in rows)
        return f'??? note "The table: {len(rows) - 2} rows"\n\n{inside}\n'

    def fold_list(found: re.Match[str]) -> str:
        entries = found[0].strip().split("\n")
        if len(entries) <= ROWS:
            return found[0]
        inside = "\n".join("    " + entry for entry in entries)
        return f'??? note "The list: {len(entries)} entries"\n\n{inside}\n'

    words = re.sub(r"(?:^\|.*(?:\n|$))+", fold, words, flags=re.MULTILINE)
    return re.sub(r"(?:^\* .*(?:\n|$))+", fold_list, words, flags=re.MULTILINE)
