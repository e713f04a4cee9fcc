"""Pages that are added to a folder appear in the site's navigation by themselves: one file each, here too.

A page that the navigation names and nobody has written yet is left out.
"""

from __future__ import annotations

from pathlib import Path

FIRST = ("index.md", "coupled_penalty.md", "penalty_actor_critic.md")


def on_config(config, **_):
    """MkDocs calls this before it reads the navigation."""
    config.nav = _filled(config.nav, Path(config.docs_dir))
    return config


def _filled(entries: list, docs: Path) -> list:
    """Folders become their pages; pages that are not there go."""
    made = []
    for entry in entries:
        if isinstance(entry, str):
            made += [entry] if entry == "reference/" or (docs / entry).exists() else []
            continue
        for title, pages in entry.items():
            if isinstance(pages, list):
                made.append({title: _filled(pages, docs)})
            elif pages.endswith("/"):
                found = sorted((docs / pages).glob("*.md"), key=lambda path: (_rank(path.name), path.name))
                made += [{title: [str(path.relative_to(docs)) for path in found]}] if found else []
            elif (docs / pages).exists():
                made.append({title: pages})
    return made


def _rank(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)
