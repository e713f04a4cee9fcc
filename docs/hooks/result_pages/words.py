"""Words that every page of results is made of: tables, intervals, the machine, the age of a figure."""

from __future__ import annotations

import json
from typing import Any


def table(facts: dict[str, Any]) -> str:
    """Heads and rows as Markdown."""
    heads = facts["heads"]
    lines = [heads, ["---"] * len(heads), *facts["rows"]]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)


def noted(facts: dict[str, Any]) -> str:
    """What was done, heads and rows, and the command."""
    return f"{facts['note']}\n\n{table(facts)}\n\n```bash\n{facts['command']}\n```"


def plain(facts: dict[str, Any]) -> str:
    """Numbers as they are, two levels deep."""
    rows = ["| Quantity | Value |", "|---|---|"]
    for key, value in facts.items():
        if key in ("hardware", "provenance"):
            continue
        if isinstance(value, dict):
            rows += [f"| {key}: {k} | {shown(v)} |" for k, v in value.items() if shown(v)]
        elif shown(value):
            rows.append(f"| {key} | {shown(value)} |")
    return "\n".join(rows).replace("_", " ")


def shown(value: Any) -> str:
    """A number or a word; mappings that hold a mean with its interval; else nothing."""
    if isinstance(value, bool) or value is None:
        return str(value)
    if isinstance(value, (int, float)):
        return f"{value:,.4g}" if isinstance(value, float) else f"{value:,}"
    if isinstance(value, str):
        return value.replace("|", "/")
    if isinstance(value, dict) and {"mean", "low", "high"} <= value.keys():
        return f"{value['mean']:.3g} [{value['low']:.3g}, {value['high']:.3g}]"
    return ""


def interval(values: list[float], digits: int = 2) -> str:
    """A figure with its interval."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} [{low}, {high}]"


def machine(facts: dict[str, Any]) -> str:
    """Where it was measured."""
    hardware = facts.get("hardware") or facts.get("provenance", {}).get("hardware")
    if not hardware:  # where parts were measured at different times, each names its own
        own = [part.get("provenance", {}).get("hardware") for part in facts.values() if isinstance(part, dict)]
        hardware = next(filter(None, own), {})
    words = [str(hardware[k]) for k in ("cpu", "accelerator", "gpu") if hardware.get(k)]
    if hardware.get("cores"):
        words.append(f"{hardware['cores']} cores")
    return f"Measured on {', '.join(words)}." if words else "The file names its machine."


EARLIER = """
!!! note "`coupled_penalty` as of version 0.1"
    These rows were made with its earlier defaults: one transition beside each chain from a simulator that is set to states
    (`explore="extra"`), critics that are not centred (`centre=False`), w falling as $k^{-3/20}$. What today's defaults do is
    in [Defaults](FOLDERdefaults.md#population) and [The paper's GridWorld](FOLDERpaper.md).
"""


def aged(facts: dict[str, Any], folder: str = "") -> str:
    """A plain word where numbers of `coupled_penalty` are older than its defaults, or younger than the others."""
    if "coupled_penalty" in facts.get("again", {}):
        part = facts["again"]["coupled_penalty"]
        made = f"version {part['versions']['bilevel-rl']}, {part['time'][:10]}, `{part['command']}`"
        return (
            f"\nRows of `coupled_penalty` are made again with the defaults of that day ({made}); those from several starts "
            "before steps were bounded in units of x's box (`reach`); four rooms have no box, nothing changes there; "
            "the others are of version 0.1.\n"
        )
    versions = facts.get("provenance", {}).get("versions", {})
    old = versions.get("bilevel-rl", "").startswith("0.1")
    return EARLIER.replace("FOLDER", folder) if old and "coupled_penalty" in json.dumps(facts) else ""
