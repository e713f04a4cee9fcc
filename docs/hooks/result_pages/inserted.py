"""Tables that stand inside hand-written pages, between `<!-- NAME -->` and `<!-- /NAME -->`, written from results."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from result_pages.gpu import iteration, tables, writing
from result_pages.restricted import control, fresh, tuning, world
from result_pages.tweets import again, at_equal_kl, brackets, countings, curves, inside, noise, swaps

# page -> name between its marks -> (file of results, its writer)
PAGES: dict[str, dict[str, tuple[str, Callable[[dict[str, Any]], str]]]] = {
    "docs/llm/gpu.md": {
        "gpu writing": ("gpu", writing), "gpu iteration": ("gpu", iteration), "gpu tables": ("gpu", tables),
    },
    "docs/llm/restricted-policies.md": {
        "restricted world": ("restricted_policies", world), "restricted tuning": ("restricted_happy_tweets", tuning),
        "restricted fresh": ("restricted_happy_tweets", fresh),
        "restricted control": ("restricted_happy_tweets", control),
    },
    "docs/llm/paper-tweets.md": {
        f"tweets {name}": ("paper_tweets", inside(writer))
        for name, writer in (
            ("countings", countings), ("brackets", brackets), ("swaps", swaps), ("noise", noise), ("kl", at_equal_kl),
            ("curves", curves), ("again", again),
        )
    },
}  # fmt: skip


def inserted(root: Path) -> dict[str, str]:
    """Each page with its tables brought up to date; one whose file is not there yet stays as it is."""
    found = {}
    for page, parts in PAGES.items():
        words = (root / page).read_text()
        for name, (stem, writer) in parts.items():
            file = root / f"benchmarks/results/{stem}.json"
            if file.exists():
                words = between(words, name, writer(json.loads(file.read_text())))
        found[page] = words
    return found


def between(words: str, name: str, text: str) -> str:
    """Words with what stands between two marks replaced; an empty line parts marks from a table.

    Example:
        >>> between("a <!-- t --> old <!-- /t --> b", "t", "new")
        'a <!-- t -->\\n\\nnew\\n\\n<!-- /t --> b'
    """
    start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
    head, _, rest = words.partition(start)
    _, mark, tail = rest.partition(end)
    if not mark:
        raise ValueError(f"{start} and {end} are not both there")
    return f"{head}{start}\n\n{text}\n\n{end}{tail}" if text else f"{head}{start}\n{end}{tail}"
