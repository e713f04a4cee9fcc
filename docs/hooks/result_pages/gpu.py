"""The figures of one GPU: `benchmarks/gpu.py`."""

from __future__ import annotations

from typing import Any

LAWS = {"captured": "ours, captured", "as written": "ours, as written", "generate": "transformers' `generate`"}


def writing(facts: dict[str, Any]) -> str:
    """Tokens a second of each way to write, by model."""
    rows = ["| | tokens a second | peak |", "|---|---|---|"]
    models = _measured(facts["writing"])
    for model, found in models.items():
        for key, words in LAWS.items():
            head = words if len(models) == 1 else f"{model}: {words}"
            rows.append(f"| {head} | {round(found[key]['tokens_per_second'], -2):,} | {found[key]['peak_gib']:.1f} GiB |")
    return "\n".join(rows)


def iteration(facts: dict[str, Any]) -> str:
    """Seconds of an iteration by what it does, and what was planned of it."""
    rows = ["| | writing | scoring | theta | x | iteration | peak | planned | planned peak |", "|---" * 9 + "|"]
    for name, found in _measured(facts["recipe"]).items():
        plan = facts["foreseen"].get(name)
        parts = " | ".join(f"{found[key]:.1f}" for key in ("writing", "scoring", "learning", "hyper-gradient", "seconds"))
        planned = " | " if plan is None else f"{sum(plan['seconds'].values()):.1f} | {plan['plan_gib']:.3g} GiB"
        rows.append(f"| {name} | {parts} | {found['peak_gib']:.3g} GiB | {planned} |")
    return "\n".join(rows)


def tables(facts: dict[str, Any]) -> str:
    """Nanoseconds a transition of the JAX engine, CPU and GPU."""
    rows = ["| | CPU | GPU |", "|---|---|---|"]
    for name, found in _measured(facts["tables"]).items():
        solver, size = name.removesuffix(", ns a transition").split(", ")
        count, unit = size.split()
        words = f"`{solver}`, {int(count):,} {unit if count != '1' else unit.rstrip('s')}"
        rows.append(f"| {words} | {_three(found['cpu'])} | {_three(found['gpu'])} |")
    return "\n".join(rows)


def _measured(part: dict[str, Any]) -> dict[str, Any]:
    return {name: found for name, found in part.items() if name != "provenance"}


def _three(value: float) -> str:
    """Three digits at most, without an exponent.

    Example:
        >>> _three(3173.0), _three(383.12), _three(0.931)
        ('3,170', '383', '0.931')
    """
    return f"{float(f'{value:.3g}'):,.10g}"
