"""Pages that are added to a folder appear in the site's navigation by themselves: one file each, here too."""

from __future__ import annotations

from pathlib import Path

FIRST = ("index.md", "coupled_penalty.md", "penalty_actor_critic.md")


def on_config(config, **_):
    """MkDocs calls this before it reads the navigation."""
    docs = Path(config.docs_dir)
    for entry in config.nav:
        for title, pages in entry.items():
            if isinstance(pages, str) and pages.endswith("/"):
                found = sorted((docs / pages).glob("*.md"), key=lambda path: (_rank(path.name), path.name))
                entry[title] = [str(path.relative_to(docs)) for path in found]
    config.nav = [entry for entry in config.nav if all(_there(docs, pages) for pages in entry.values())]
    return config


def _rank(name: str) -> int:
    return FIRST.index(name) if name in FIRST else len(FIRST)


def _there(docs: Path, pages) -> bool:
    return bool(pages) and (not isinstance(pages, str) or (docs / pages).exists())
