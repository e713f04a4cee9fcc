"""Every method on every problem: where ours is behind, and whether gradients or starts are to blame."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np


def found_of_suite(files: Mapping[str, dict[str, Any]]) -> str:
    """The table in a few lines: rows first, level and behind; each row behind beside exact descent from the same starts.

    Args:
        files: facts by the file's name.
    """
    from bilevel_rl import statistics
    from bilevel_rl.report import suite as words

    facts, exact = files["suite"], files.get("basins", {"cells": {}})["cells"]
    lines = words.verdicts(facts)
    one = {line[0]: [verdict for verdict in (line[4], line[5].rpartition(": ")[2]) if verdict in _ORDER] for line in lines}
    many = {line[0]: [line[8]] for line in lines if line[8] in _ORDER}
    searched = {}
    for task in facts["tasks"]:
        cells = [c for c in words.done(facts, task, "samples") if c["starts"]]
        rivals = [c for c in cells if c["solver"] not in (words.OURS, words.LEARNT)]
        own = [c for c in cells if c["solver"] == words.OURS]
        searched |= {task: [words.judged(own[0], rivals)]} if own and rivals else {}
    parts = [
        f"* **From one start**, against every rival that samples, as published and with our baseline: {_counted(one)}.",
        f"* **From many starts**, at the samples of one, with what is recommended for many: {_counted(many)}. "
        f"`coupled_penalty` by `search`: {_counted(searched)}.",
    ]
    for line in lines:
        if "behind" not in one[line[0]]:
            continue
        ends = {key.split(" | ")[1]: cell["final"] for key, cell in exact.items()
                if key.split(" | ")[0] == line[0] and key.split(" | ")[1] not in SAMPLED}  # fmt: skip
        single = [c for c in words.done(facts, line[0], "samples") if not c["starts"]]
        rivals = [c for c in single if line[3].startswith(c["method"] + " ")]
        least = min(float(statistics.interquartile_mean(words.ends(c))) for c in rivals)
        parts.append(f"* **Behind on {line[0]}**: {line[2]} for {line[3]}." + _beside(ends, least))
    return "## What was found\n\n" + "\n".join(parts) + "\n\n" + row_by_row(facts)


def row_by_row(facts: dict[str, Any]) -> str:
    """Task by task: the best competitor, and our solvers that are first or level; from one start and from many."""
    from bilevel_rl.report import suite as words

    ours = (words.OURS, words.LEARNT)
    rows, held, all_rows = [], 0, 0
    for task in facts["tasks"]:
        cells, line = words.done(facts, task, "samples"), [task]
        for many in (False, True):
            here = [c for c in cells if (bool(c["starts"]) or "starts" in c["method"]) == many]
            rivals = [c for c in here if c["solver"] not in ours]
            if not rivals:
                line += ["–", "–"]
                continue
            own = [(c["method"], words.judged(c, rivals)) for c in here if c["solver"] in ours]
            own.sort(key=lambda pair: _ORDER.index(pair[1]))
            told = [f"`{method}` {'**behind**' if verdict == 'behind' else verdict}" for method, verdict in own]
            line += [f"{rivals[0]['method']} {words.words(words.ends(rivals[0]))}", "; ".join(told)]
            held, all_rows = held + (own[0][1] != "behind"), all_rows + 1
        if line[1] != "–":
            rows.append(f"| {' | '.join(line)} |")
    heads = [
        "### Row by row\n",
        "How each solver of ours stands against every competitor, at equal samples: `coupled_penalty` is what runs when "
        "none is named; `certainty_equivalence` counts transitions, on small tables whose transitions x does not move, "
        "where `plan` and [How to choose](../how-to-choose.md) recommend it. *8 starts* of the former are `search`, *12 "
        f"starts* of the latter share one model. Of {all_rows} comparisons the better of ours, chosen here "
        f"after the fact, is first or level in {held}.\n",
        "| Task | Best competitor, one start | Ours, one start | Best competitor, many starts | Ours, many starts |",
        "|---|---|---|---|---|",
    ]
    return "\n".join(heads + rows)


SAMPLED = {  # not exact descent, but the recommended solver
    "shipped": "`coupled_penalty` as shipped", "raced": "`coupled_penalty`, eight starts in one run",
    "raced, by critics": "the same, starts judged by their critics",
}  # fmt: skip
_ORDER = ("first", "level", "behind")


def _counted(verdicts: dict[str, list[str]]) -> str:
    """How many tasks have each verdict as their worst; those that are behind by name."""
    worst = {task: max(some, key=_ORDER.index) for task, some in verdicts.items() if some}
    names = {verdict: [task for task, has in worst.items() if has == verdict] for verdict in _ORDER}
    counts = ", ".join(f"{verdict} on {len(names[verdict])}" for verdict in _ORDER)
    return f"of {len(worst)} tasks {counts}" + (f" ({'; '.join(names['behind'])})" if names["behind"] else "")


def _beside(ends: dict[str, list[float]], rival: float) -> str:
    """What exact descent reaches from the same starts, and what follows where that is no lower than the rival."""
    from bilevel_rl import statistics
    from bilevel_rl.report import suite as words

    if not ends:
        return ""
    reached = " and ".join(f"{words.words(np.array(final))} with {steps} steps" for steps, final in ends.items())
    above = all(float(statistics.interquartile_mean(np.array(final))) > rival for final in ends.values())
    follows = ": what is missing is a better start, and no better estimate of the gradient would do" if above else ""
    return f" Exact descent from the same starts ends at {reached} ([Basins](#basins)){follows}."


def basins(facts: dict[str, Any]) -> str:
    """Task and steps by where exact descent ends; the recommended solver as shipped beside it."""
    from bilevel_rl.report import suite as words

    rows = [
        "Where exact descent ends, by the oracle's hyper-gradient, from the 24 starts of the table's runs with one start: "
        "400 steps of 10 times the gradient and no longer than .2 (*short*), or of 100 times and no longer than .5 "
        "(*long*). *As shipped*: `coupled_penalty` with its own steps, from the first eight of these starts, 400,000 "
        "transitions. *Eight starts in one run*: the table's setting and samples, judged by planning on what all have seen; "
        "*by their critics* is how it was before. "
        "*Nothing spent*: ends within .02 of 0, where the leader gives up. `python benchmarks/basins.py` makes it again.\n",
        "| Task | | Interquartile mean | Lowest | Nothing spent | Above 0 |",
        "|---|---|---|---|---|---|",
    ]
    for key, cell in facts["cells"].items():
        task, steps = key.split(" | ")
        final = np.array([np.inf if v is None else v for v in cell["final"]])
        gave_up, above = np.abs(final) <= 0.02, final > 0.02
        who = SAMPLED.get(steps, f"exact descent, {steps} steps")
        rows.append(
            f"| {task} | {who} | {words.words(final)} | {final.min():.4g} | {gave_up.sum()} of {final.size} | "
            f"{above.sum()} of {final.size} |"
        )
    return "\n".join(rows)
