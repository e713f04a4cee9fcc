"""Published figures and the competing methods at their own budgets."""

from __future__ import annotations

from typing import Any


def exact_search(facts: dict[str, Any]) -> str:
    """Best values by the exact quasi-Newton method beside the published ones; each way to start; a thousand seeds."""
    cells, seeds = facts["cells"], facts["thousand seeds"]
    parts = [
        "Upper values as the studies count them (higher is better), by exact oracles at the x found. *Known*: what was "
        "known to be reachable. *Best*: of all ways to start. A best of many starts says little about a method, so the mean "
        "over starts stands beside it. `python benchmarks/exact_search.py` makes it again and says what the ways are.\n"
    ]
    for kind in dict.fromkeys(name.split(",")[0] for name in cells):
        some = {name: cell for name, cell in cells.items() if name.split(",")[0] == kind}
        theirs = list(dict.fromkeys(who for cell in some.values() for who in cell["published"]))
        ways = list(dict.fromkeys(way for cell in some.values() for way in cell["ways"]))
        heads = ["Temperature", "Price", *theirs, "Known", "Best", *(f"{way}: mean / best" for way in ways), "Seconds"]
        parts += [f"**`{kind}`**\n", "| " + " | ".join(heads) + " |", "|---" * len(heads) + "|"]
        for cell in some.values():
            found = [cell["ways"].get(way) for way in ways]
            best = max(way["best"] for way in found if way)
            columns = [f"{cell['temperature']:g}", str(cell.get("price", ""))]
            columns += [f"{cell['published'][who]:g}" if who in cell["published"] else "" for who in theirs]
            columns += [cell["known"], f"**{best:.5g}**"]
            columns += [f"{way['mean']:.4g} / {way['best']:.5g} ({way['starts']})" if way else "" for way in found]
            parts.append("| " + " | ".join([*columns, f"{sum(way['seconds'] for way in found if way):.0f}"]) + " |")
        parts += ["", "```bash", *(cell["command"] for cell in some.values()), "```\n"]
    parts.append(
        f"**A thousand seeds in one process.** {seeds['runs']:,} random starts of `{seeds['problem']}` ({seeds['states']} "
        f"states), {seeds['iterations']} iterations each: {seeds['seconds']:.0f} s "
        f"({seeds['milliseconds_a_run_iteration']:.2f} ms a run and iteration), peak memory {seeds['peak_mib']:,} MiB. "
        f"Best {seeds['best']:.4g}, median {seeds['median']:.4g}, mean {seeds['mean']:.4g}; "
        f"{seeds['share_above_1']:.1%} end above 1, {seeds['share_below_.6']:.1%} below .6."
    )
    return "\n".join(parts)


def published(facts: dict[str, Any]) -> str:
    """Each published figure beside what this library's implementation reaches, and the rule of the verdicts."""
    counts = ", ".join(f"{word}: {number}" for word, number in facts["counts"].items())
    rows = [
        "Upper values as the studies count them; what differs and why: [Published figures](../published.md). "
        f"{facts['rule']} Of {len(facts['cells'])} cells, {counts}.\n",
        "| Problem | Method | Cell | tau | Published | Runs | IQM [95 %] | Median | Best | Chosen | Verdict |",
        "|---" * 11 + "|",
    ]
    for c in facts["cells"]:
        chosen = ", ".join(f"{name} {value:g}" for name, value in c["chosen"].items())
        error = f" ± {c['published_error']:.2g}" if c["published_error"] else ""
        rows.append(
            f"| {c['problem']}: `{c['name']}` | {c['method']} | {c['label']} | {c['tau']:g} | {c['published']:g}{error} | "
            f"{c['runs']} | {c['iqm']:.3f} [{c['low']:.3f}, {c['high']:.3f}] | {c['median']:.3f} | {c['best']:.3f} | "
            f"{chosen} | {c['verdict']} |"
        )
    return "\n".join(rows)


def peers(facts: dict[str, Any]) -> str:
    """Figures that definitions give beside ours; cost and memory of the exact oracles."""
    rows = ["| Given with the definition | Figure | Ours | The same |", "|---|---|---|---|"]
    for label, row in facts["definitions"].items():
        rows.append(f"| {label} | {row['given']} | {row['ours']:.6g} | {'yes' if row['agrees'] else 'no'} |")
    rows += ["\n| Exact value and gradient | ms | Peak GiB |", "|---|---|---|"]
    rows += [f"| `{name}` | {cost:.2f} | |" for name, cost in facts["milliseconds"].items()]
    rows += [
        f"| `random_mdp`, {row['states']:,} states | {row['milliseconds']:.1f} | {row['peak_gib']:.2f} |"
        for row in facts["random MDP"]
    ]
    return "\n".join(rows)
