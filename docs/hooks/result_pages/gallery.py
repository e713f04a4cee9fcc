"""The runs that the gallery's pictures were drawn from."""

from __future__ import annotations

from typing import Any


def gallery(facts: dict[str, Any]) -> str:
    """Where each run began and ended, and what is drawn of it."""
    rows = [
        "The runs behind the [gallery](../learn/gallery.md)'s pictures: one each, as the commands there have them. "
        f"`{facts['command']}` makes them again.\n",
        "| Problem | Objective at first | at last | Drawn |",
        "|---|---|---|---|",
    ]
    for name, row in facts["problems"].items():
        rows.append(f"| {name} | {row['first']:.4g} | {row['last']:.4g} | {row['drawn']} |")
    return "\n".join(rows)
