"""What the site knows about where the project lives: one setting, `[tool.bilevel-rl] repository` in pyproject.toml.

While it is empty, no page and no README shows an address or a badge.
"""

from __future__ import annotations

import os
import tomllib
from pathlib import Path


def on_config(config, **_):
    """MkDocs calls this before it builds."""
    address = repository(Path(config.docs_dir).parent)
    if address:
        config.repo_url, config.repo_name = address, address.split("/", 3)[-1]
    if os.environ.get("DOCS_VERSIONED"):  # only where `mike` keeps one site a version: a site opened from disk has no list
        config.extra["version"] = {"provider": "mike"}
    return config


def repository(root: Path) -> str:
    """The address, such as `https://github.com/OWNER/NAME`, or nothing."""
    with (root / "pyproject.toml").open("rb") as file:
        return tomllib.load(file).get("tool", {}).get("bilevel-rl", {}).get("repository", "").rstrip("/")


def colab(root: Path, notebook: str) -> str:
    """A badge that opens a notebook of the repository in Colab; nothing while there is no address."""
    address = repository(root)
    if not address.startswith("https://github.com/"):
        return ""
    place = address.removeprefix("https://github.com/")
    picture = "https://colab.research.google.com/assets/colab-badge.svg"
    return f"[![Open in Colab]({picture})](https://colab.research.google.com/github/{place}/blob/main/{notebook})"


def badges(root: Path) -> str:
    """The README's badges."""
    address = repository(root)
    if not address:
        return ""
    return f"[![CI]({address}/actions/workflows/ci.yml/badge.svg)]({address}/actions) {colab(root, 'docs/learn/tour.ipynb')}"
