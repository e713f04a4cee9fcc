"""Neural followers against exact answers."""

from __future__ import annotations

from typing import Any

from result_pages.words import table


def control_known(facts: dict[str, Any]) -> str:
    """Neural followers against exact answers: estimates at a fixed x, whole runs, the paper's algorithm."""
    parts, blocks = facts["parts"], []
    runs = {key.partition(" ")[2]: part for key, part in parts.items() if key.startswith("run ")}
    papers = {
        f"{key.partition(' ')[2]}, {words} numbers": part
        for key, parts_of in parts.items() if key.startswith("paper ")
        for words, part in parts_of.items() if isinstance(part, dict)
    }  # fmt: skip
    heads = ["Problem", "Transitions", "Within 5 % at the end", "9 of 10 seeds from", "within 5 % of the first gap alone",
             "Median gap", "Gap at x0", "Best value"]  # fmt: skip
    for title, found in (("`covariance` as shipped", runs), ("`penalty_actor_critic` as shipped", papers)):
        if not found:
            continue
        rows = [
            [
                name, f"{part['transitions'][-1]:,}", f"{part['within at the end']} of {part['runs']}", _since(part),
                f"{sum(gap <= 0.05 * part['gap at x0'] for gap in part['gaps at the end'])} of {part['runs']}",
                f"{part['median gap'][-1]:.4f}", f"{part['gap at x0']:.4f}", f"{part['best value']:.4f}",
            ]
            for name, part in found.items()
        ]  # fmt: skip
        blocks.append(f"{title}:\n\n" + table({"heads": heads, "rows": rows}))
    for key, part in parts.items():
        if key.startswith("fixed "):
            rows = [[name, *(f"{row[k]:.3f}" for k in ("bias", "spread", "cosine"))] for name, row in part["rows"].items()]
            words = f"Estimates at x0 of {key.partition(' ')[2]}, means over the last moves, {part['seeds']} seeds, "
            words += f"{part['transitions']:,} transitions of all followers, over the size of the exact hyper-gradient:\n\n"
            columns = ["Estimator", "Bias", "Spread over seeds", "Cosine of the mean"]
            blocks.append(words + table({"heads": columns, "rows": rows}))
    return "\n\n".join(blocks)


def _since(part: dict[str, Any]) -> str:
    """The first record from which at least nine in ten seeds stay within 5 %."""
    enough = [count >= 0.9 * part["runs"] for count in part["within"]]
    if not enough[-1]:
        return "–"
    first = max((i + 1 for i, good in enumerate(enough) if not good), default=0)
    return f"{part['transitions'][first]:,}"
