"""Cost and memory along states, dimensions and runs."""

from __future__ import annotations

from typing import Any


def scaling(facts: dict[str, Any]) -> str:
    """Cost and memory along each axis, with their slopes."""
    rows = ["Cost: microseconds a sample and a run. Own memory: the peak less what the process held before the problem was "
            "made; it includes compilation. Slopes: of the logarithms, over the three largest values of an axis.\n",
            "| Solver | States | dim x | Runs | us a sample | Own MiB |", "|---|---|---|---|---|---|"]  # fmt: skip
    for p in facts["points"]:
        end = p["failed"] if "failed" in p else f"{p['us_a_sample']:.3g} | {p['peak_mib'] - p['idle_mib']:,}"
        rows.append(f"| {p['solver']} | {p['states']:,} | {p['dimensions']} | {p['runs']} | {end} |")
    rows += ["\n| Along | Slope of cost | Slope of memory |", "|---|---|---|"]
    rows += [f"| {name} | {s['us_a_sample']:.2f} | {s['own_mib']:.2f} |" for name, s in facts["slopes"].items()]
    return "\n".join(rows)


def moving(facts: dict[str, Any]) -> str:
    """Nanoseconds a transition, shape by number of states."""
    sizes = sorted({int(size) for found in facts["kinds"].values() for size in found})
    rows = ["`coupled_penalty` as shipped where x moves the kernel: a processor's nanoseconds a transition, one run, by "
            "number of states, and how many times as much as at the fewest (sizes timed in turns; the least of eight, the "
            "median of eight ratios). `python benchmarks/moving.py` makes it again.\n",
            f"| Successors | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]  # fmt: skip
    for kind, found in facts["kinds"].items():
        cells = [found.get(str(size)) for size in sizes]
        words = ["–" if c is None else f"{c['nanoseconds']:,.0f} ({c['ratio']:.2f})" for c in cells]
        rows.append(f"| {kind} | {' | '.join(words)} |")
    return "\n".join(rows)
