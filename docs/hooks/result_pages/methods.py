"""Every method on every problem, and what the defaults do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from result_pages.words import aged


def quality(facts: dict[str, Any]) -> str:
    """Problem by solver: successes, gaps, samples and the setting that the sweep chose."""
    rows = [
        "Every method on every problem: 8 settings, 5 tuning seeds, the same transitions; the chosen setting then runs on "
        "fresh seeds. Within 5 %: of the global optimum, found by brute force. Every score is in the file.\n",
        "| Problem | Method | Transitions | Within 5 % | at 128,000 | Median gap | Chosen |",
        "|---|---|---|---|---|---|---|",
    ]
    cells = {tuple(name.split(" | ")): cell for name, cell in facts["cells"].items()}
    order = list(facts["optima"])
    for (problem, method), cell in sorted(
        cells.items(), key=lambda item: (order.index(item[0][0]), item[0][1] != "coupled_penalty", item[0][1])
    ):
        small = cell.get("within_5_percent_small")
        chosen = ", ".join(
            f"{name.removesuffix('.initial')} {value:g}" for name, value in cell["tuning"]["chosen"].items()
        )
        own = method.startswith("coupled_penalty") and "extra" not in method
        method += " (version 0.1)" if own and cell.get("version", "").startswith("0.1") else ""
        early = "–" if small is None else f"{small} of {cell['runs']}"
        rows.append(
            f"| {problem} | {method} | {format(cell['samples'], ',') if cell['samples'] else 'model'} | "
            f"{cell['within_5_percent']} of {cell['runs']} | {early} | "
            f"{cell['median_gap']:.2g} | {chosen} |"
        )
    return "\n".join(rows)


POPULATION_DRAWS = {
    "reporting": "random instances (reporting draw)", "tuning": "random instances (tuning draw)",
    "reference": "reference grids", "cold": "low temperatures and ends (tuning draw)",
    "cold_reporting": "low temperatures and ends (reporting draw)",
}  # fmt: skip


def population(facts: dict[str, Any]) -> str:
    """Draw and kind by variant: runs that succeed, early and late, and where exact descent from the same start does."""
    cold = (
        "Two more draws have temperatures of .001 to .02: *crossings*, two rooms with an end and doors that x makes dear, "
        "and *cold placements*. "
    )
    rows = [
        "Solvers as shipped on instances that nobody arranged: goal placements, mazes, frozen lakes, random MDPs, tolls, "
        "drawn at random from a seed fixed before any run; 128,000 transitions a run. A run succeeds when its gap is at "
        f"most 5 % of max(|best|, initial gap). {cold if any(key.startswith('cold') for key in facts['cells']) else ''}"
        "*Solvable*: where exact descent from the same start succeeds; what is lost elsewhere is another basin. "
        "`python benchmarks/population.py` makes it again.\n",
        "| Instances | Kind | Variant | Succeed | by 32,000 | Where solvable |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[str, str, str], list[tuple[dict, dict]]] = {}
    for key, cell in facts["cells"].items():
        draw, name, variant = key.split(" | ")
        groups.setdefault((draw, name.rsplit(" ", 1)[0], variant), []).append((facts["known"][f"{draw} | {name}"], cell))

    def succeed(pairs: list[tuple[dict, dict]], record: int) -> str:
        good = [g[record] is not None and g[record] <= known["allowed"] for known, cell in pairs for g in cell["gaps"]]
        return f"{sum(good)} of {len(good)}" if good else "–"

    for (draw, kind, variant), pairs in groups.items():
        solvable = [(known, cell) for known, cell in pairs if known["exact_descent"]]
        rows.append(
            f"| {POPULATION_DRAWS[draw]} | {kind} | {variant} | {succeed(pairs, -1)} | {succeed(pairs, 0)} | "
            f"{succeed(solvable, -1)} |"
        )
    return "\n".join(rows)


def suite(facts: dict[str, Any]) -> str:
    """The table of all solvers on all tasks: its words are the report's."""
    from bilevel_rl.report import suite as words

    return words.markdown(facts)


def choose(root: Path) -> str:
    """The page on choosing, with what follows from the table brought up to date."""
    from bilevel_rl.report import suite as words

    page = (root / "docs/how-to-choose.md").read_text()
    start, end = "<!-- suite -->\n", "<!-- /suite -->"
    facts = json.loads((root / "benchmarks/results/suite.json").read_text())
    head, tail = page[: page.index(start) + len(start)], page[page.index(end) :]
    return head + words.choice(facts) + "\n" + aged(facts, "results/") + tail


def braess(facts: dict[str, Any]) -> str:
    """Where the runs end, beside the best toll."""
    ends = [row[-1] for row in facts["tolls"]]
    rows = ["| Run | Toll (hours) | Minutes |", "|---|---|---|"]
    rows += [f"| {i} | {x:.3f} | {60 * h:.2f} |" for i, (x, h) in enumerate(zip(ends, facts["hours"], strict=True))]
    rows += [f"| best known | {facts['best_toll']:.3f} | {60 * facts['best_hours']:.2f} |",
             f"| without a toll | 0 | {60 * facts['hours_without']:.2f} |"]  # fmt: skip
    return f"`coupled_penalty` as shipped on `braess`, {facts['samples']:,} transitions a run.\n\n" + "\n".join(rows)


def reliability(facts: dict[str, Any]) -> str:
    """Bad inputs, damaged folders and kills: how each ended."""
    rows = ["| What | How many | How they ended |", "|---|---|---|"]
    words = {"inputs": "inputs with a part that is wrong", "corruptions": "damaged files of a run folder"}
    for key, label in words.items():
        if key in facts:
            ended = ", ".join(f"{count:,} {how}" for how, count in sorted(facts[key]["ended"].items()))
            rows.append(f"| {label} | {facts[key].get('generated', facts[key].get('damaged')):,} | {ended} |")
    if "kills" in facts:
        one = facts["kills"]
        rows.append(f"| kills, in {one['runs']} runs | {one['kills']} | {one['differing']} runs with other bits |")
    note = "Harmless: what the file says is the same as before, such as after a flipped bit in an archive's time stamp."
    return "\n".join(rows) + f"\n\n{note}"
