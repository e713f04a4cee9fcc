"""What language models write: one method before and after, and the methods beside each other on the same prompts."""

from __future__ import annotations

from typing import Any

from bilevel_rl.report.collect import MethodRuns, Section

ROWS, BESIDE = 12, 8  # ours: rows of one method's table, and of the one of all methods


def before_and_after(section: Section) -> list[dict[str, Any]]:
    """The first and the last sample table of each language-model method."""
    found = []
    for m in section.methods:
        if m.samples:
            steps = sorted({row["iteration"] for row in m.samples})
            before, after = (rows_of(m, k)[:ROWS] for k in (steps[0], steps[-1]))
            found.append({"label": m.label, "first": steps[0], "last": steps[-1], "before": before, "after": after})
    return found


def together(section: Section) -> dict[str, Any] | None:
    """The last sample tables of all methods, a row a prompt; None where fewer than two methods have any.

    Methods that drew other prompts are set beside each other row by row, and the caption says so.
    """
    last = {m.label: rows_of(m, max(row["iteration"] for row in m.samples)) for m in section.methods if m.samples}
    if len(last) < 2:
        return None
    by_prompt = {label: {row["prompt"]: row for row in reversed(rows)} for label, rows in last.items()}
    prompts = dict.fromkeys(row["prompt"] for rows in last.values() for row in rows)
    shared = [p for p in prompts if sum(p in found for found in by_prompt.values()) > 1][:BESIDE]
    if shared:
        rows = [{"prompt": p, "cells": [found.get(p) for found in by_prompt.values()]} for p in shared]
        caption = "The last sample table of each method, on the prompts that two or more of them met; a prompt's first row."
    else:
        count = min(BESIDE, max(map(len, last.values())))
        rows = []
        for i in range(count):
            met = [some[i] if i < len(some) else None for some in last.values()]
            cells = [None if r is None else r | {"completion": f"{r['prompt']} {r['completion']}"} for r in met]
            rows.append({"prompt": str(i + 1), "cells": cells})
        caption = "The last sample table of each method, row by row, prompts included: they met different prompts."
    return {"labels": list(last), "rows": rows, "caption": caption}


def rows_of(method: MethodRuns, iteration: int) -> list[dict[str, Any]]:
    """The sample table of one iteration."""
    return [row for row in method.samples if row["iteration"] == iteration]
