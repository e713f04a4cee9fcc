"""Learners from stored data: curves under one protocol, two levels on data, updates a second."""

from __future__ import annotations

from typing import Any

from result_pages.words import table


def offline(facts: dict[str, Any]) -> str:
    """Three tables and the command."""
    parts = [facts["note"], table(facts)]
    if facts["levels"]["rows"]:
        parts += [
            "Two levels: Pendulum's own return, a sum over 200 steps, of fresh learners at the x that was found from data "
            "alone, and at what it is compared with. Interquartile means over seeds.", table(facts["levels"]),
        ]  # fmt: skip
    parts += _why(facts["cells"])
    speed = facts["cells"].get("speed")
    if speed:
        rates = [[f"TD3+BC, {who}", f"{rate:,.0f}"] for who, rate in speed["rates"].items()]
        parts += [
            f"Speed, in turns in one process; {speed['rows']:,} rows were loaded and put on the device once, in "
            f"{speed['load_seconds']:g} s of a core.",
            table({"heads": ["Loop", "Updates of a seed a second, among five seeds"], "rows": rates}),
        ]  # fmt: skip
    return "\n\n".join([*parts, f"```bash\n{facts['command']}\n```"])


def _why(cells: dict[str, Any]) -> list[str]:
    """What the leader sees of x: its f, by fresh learners, beside what these return; two seeds each."""
    rows = [["mixture, by a linear system on held-out rows", name, *map(_pair, pair)]
            for name, pair in cells.get("why/mixture", {}).items() if isinstance(pair, list)]  # fmt: skip
    rows += [[f"imitation, after {updates}", name, *map(_pair, pair)]
             for updates, found in cells.get("why/imitation", {}).items() if isinstance(found, dict)
             for name, pair in found.items()]  # fmt: skip
    if not rows:
        return []
    heads = ["Pendulum, what the leader sees", "x", "f, smaller is better", "Return"]
    return ["Fresh learners, two seeds each:", table({"heads": heads, "rows": rows})]


def _pair(values: list[float]) -> str:
    return " and ".join(f"{v:g}" for v in values)
