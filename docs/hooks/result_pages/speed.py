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
    points = {tuple(key.split(" | ")): found for key, found in facts["points"].items()}
    sizes = sorted({int(size) for _, size in points})
    rows = ["`coupled_penalty` as shipped where x moves the kernel: a processor's nanoseconds a transition, one run, by "
            "number of states. `python benchmarks/moving.py` makes it again.\n",
            f"| Successors | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]  # fmt: skip
    for kind in dict.fromkeys(kind for kind, _ in points):
        cells = [points.get((kind, str(size))) for size in sizes]
        rows.append(f"| {kind} | {' | '.join('–' if c is None else format(round(c['nanoseconds']), ',') for c in cells)} |")
    return "\n".join(rows)
