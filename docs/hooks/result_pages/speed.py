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
    """Nanoseconds a transition, shape by number of states, and how much of it the memory alone takes."""
    sizes = sorted({int(size) for found in facts["kinds"].values() for size in found})
    rows = ["`coupled_penalty` as shipped where x moves the kernel: a processor's nanoseconds a transition, one run, by "
            "number of states, and how many times as much as at the fewest (sizes timed in turns; the least of eight, the "
            "median of eight ratios). *Memory alone*: a loop that reads and writes rows of as many tables at such places, "
            "in the same turns. A tenth of all steps begin an episode anew, anywhere, or always in one state. "
            "`python benchmarks/moving.py` makes it again.\n",
            f"| Successors | {' | '.join(f'{size:,}' for size in sizes)} |", "|---" * (len(sizes) + 1) + "|"]  # fmt: skip
    for kind, found in facts["kinds"].items():
        cells = [found.get(str(size)) for size in sizes]
        words = ["–" if c is None else f"{c['nanoseconds']:,.0f} ({c['ratio']:.2f})" for c in cells]
        alone = ["–" if c is None else f"{c['memory']:,.0f}" for c in cells]
        rows += [f"| {kind} | {' | '.join(words)} |", f"| *its memory alone* | {' | '.join(alone)} |"]
    return "\n".join(rows)


STATES = {
    "mdp_mib": "the MDP, MiB", "seconds_to_make": "processor seconds to make it",
    "peak_to_make_mib": "peak while it is made, MiB", "state_mib": "`coupled_penalty`: a run's state, MiB",
    "nanoseconds": "a transition, processor's ns", "ratio": "times as much as at the fewest",
    "peak_mib": "the process's peak, MiB",
    "counted_state_mib": "`certainty_equivalence`: a run's state, MiB",
    "counted_temporaries_mib": "temporaries of an iteration, MiB",
}  # fmt: skip


def states(facts: dict[str, Any]) -> str:
    """Memory and cost of the finite engine by number of states."""
    sizes = sorted(facts["sizes"], key=int)
    heads = " | ".join(f"{int(size):,}" for size in sizes)
    rows = [
        "A corridor whose successors are a rule, read block by block; no table of S x A x S. The last column is the slope "
        "of the logarithms between the two largest sizes: 1 is linear. `python benchmarks/states.py` makes it again.\n",
        f"| States | {heads} | slope |", "|---" * (len(sizes) + 2) + "|",
    ]  # fmt: skip
    for key, name in STATES.items():
        cells = " | ".join(f"{facts['sizes'][size][key]:,.4g}" for size in sizes)
        rows.append(f"| {name} | {cells} | {facts['slopes'].get(key, float('nan')):.2f} |")
    return "\n".join(rows)


def many_processes(facts: dict[str, Any]) -> str:
    """Weak and strong scaling of the trainer and of the suite."""
    return "\n\n".join(write(facts[part]) for part, write in (("trainer", _trainer), ("suite", _suite)) if part in facts)


def _trainer(facts: dict[str, Any]) -> str:
    rows = [
        "The trainer: a small GPT-2, one thread a process, 64 completions of 32 tokens an iteration in all (strong) or of "
        f"each process (weak). Medians over {facts['rounds']} rounds in which all take turns, least and most in brackets. "
        "Efficiency: tokens a second over those of two independent processes in the same round. While it was measured "
        f"others kept {facts['busy_with_others']:g} processors busy.\n",
        "| Processes | Tokens a second | Efficiency | by processor time | Communication, with waiting | Sent an iteration |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for row in facts["rows"]:
        by = [f"{middle:.2f} [{low:.2f}, {high:.2f}]" for middle, low, high in (row["efficiency"], row["processor"])]
        sent = f"{row['mib']:.1f} MiB in {row['messages']:.0f} messages" if row["messages"] else "nothing"
        cells = (row["run"], f"{row['tokens_a_second']:,.0f}", *by, f"{row['communication']:.0%}", sent)
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def _suite(facts: dict[str, Any]) -> str:
    rows = ["The suite: eight cells on raylets of one processor each, compiled programs kept.\n",
            "| Raylets | Seconds | Cells a minute | Processors busy, others' included |", "|---|---|---|---|"]  # fmt: skip
    keys = ("raylets", "seconds", "cells_a_minute", "busy_processors")
    return "\n".join([*rows, *(f"| {' | '.join(str(row[key]) for key in keys)} |" for row in facts["rows"])])
