"""The paper's GridWorld: the README's table, searches, claims, limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from result_pages.words import table

GRIDWORLD_SHOWN = (0.4e6, 1.2e6, 3e6)  # budgets of the table: the last record within each

# README rows, label of the search -> words; all rows are on the page of results
FIRST_SCREEN = {
    "as published": "**the paper's algorithm, as published**",
    "+ common random numbers": "**+ common random numbers (ours)**",
    "as published, one chain": "as published, one chain",
    "+ steady followers and w": "+ common numbers, aids, steady critics, actors and w (ours)",
    "+ its exponents": "+ common numbers, aids, exponents searched too (ours)",
    "nested_penalty, as published": "nested loop, as published",
    "nested_penalty": "nested loop + common numbers, hold, momentum, averaging (ours)",
    "nested_penalty, + its exponents": "nested loop + common numbers, aids, exponents searched too (ours)",
    "finite_difference": "finite differences, common numbers",
    "finite_difference, independent numbers": "finite differences",
    "partial_sgd": "partial SGD",
    "constant entropy": "the paper's, constant entropy, our aids",
    "coupled_penalty": "**`coupled_penalty` (ours)**, as shipped",
}

TARGETED = (
    "as published", "as published, one chain", "+ common random numbers", "+ hold, momentum, averaging",
    "+ steady followers", "+ steady followers and w", "+ its exponents",
)  # fmt: skip


def gridworld_table(facts: dict[str, Any], labels: dict[str, str] | None = None) -> str:
    """Both parametrisations: mean of both grades at the end, and seeds within 5 % at three budgets."""
    heads = ["method"]
    for part in facts["parts"]:
        heads += [f"{part}: mean at 3 million (regularised)", f"{part}: within 5 % at .34 / 1.1 / 3 million (regularised)"]
    found = list(dict.fromkeys(label for part in facts["parts"].values() for label in part["rows"]))
    rows = []
    for label in found if labels is None else [x for x in labels if x in found]:
        cells = [label if labels is None else labels[label]]
        for part in facts["parts"].values():
            row = part["rows"].get(label)
            if row is None:
                cells += ["–", "–"]
                continue
            marks = [_at(row["budgets"], budget) for budget in GRIDWORLD_SHOWN]
            end = next((i for i in reversed(marks) if i is not None), 0)
            late = "" if marks[-1] is not None else f" at {row['budgets'][end] / 1e6:.2g} million"
            cells.append(f"{row['mean'][end]:.3f} ± {row['half'][end]:.3f} ({row['regularised mean'][end]:.3f}){late}")
            counts, soft = (
                " / ".join("–" if i is None else str(row[key][i]) for i in marks) for key in ("within", "regularised within")
            )
            cells.append(f"{counts} ({soft}) of {row['runs']}")
        rows.append(cells)
    return table({"heads": heads, "rows": rows})


def _at(budgets: list[int], budget: float) -> int | None:
    """Index of the last record within a budget; None where the run ended well before it."""
    fits = [i for i, b in enumerate(budgets) if b <= budget]
    return fits[-1] if fits and budgets[fits[-1]] > budget / 1.3 else None


def broken_conditions(facts: dict[str, Any]) -> str:
    """Which of the paper's conditions the chosen settings break."""
    words = ["Conditions of the paper that the settings chosen by the search break:\n"]
    for name, part in facts["parts"].items():
        for label, row in part["rows"].items():
            if "broken conditions" in row:
                broken = "; ".join(row["broken conditions"]) or "none of those that the library checks"
                words.append(f"* goal as a {name}, *{label}*: {broken}")
    return "\n".join(words)


def differences(facts: dict[str, Any]) -> str:
    """Where the paper's rows are ahead of each rival and where behind, corrected for the number of comparisons."""
    words: list[str] = []
    for name, part in facts["parts"].items():
        if not part["differences"]:
            continue
        words += [
            f"**Goal as a {name}: differences of means.** Budgets above .2 million at which the paper's row is ahead of the "
            f"rival (the upper end below 0) or behind it (the lower end above 0), of how many; Welch intervals, together "
            "95 % over all comparisons of a family (Bonferroni): with the paper's baselines, and with rivals that have our "
            f"aids ({' and '.join(map(str, dict.fromkeys(d['family'] for d in part['differences'])))} comparisons).\n",
            "| Paper's row | Rival | Ahead | Behind | Difference at the last budget |", "|---|---|---|---|---|",
        ]  # fmt: skip
        pairs = dict.fromkeys((d["of"], d["less"]) for d in part["differences"])
        for of, less in pairs:
            some = [d for d in part["differences"] if (d["of"], d["less"]) == (of, less)]
            last = some[-1]
            words.append(
                f"| {of} | {less} | {sum(d['high'] < 0 for d in some)} of {len(some)} | {sum(d['low'] > 0 for d in some)} | "
                f"{last['difference']:.3f} [{last['low']:.3f}, {last['high']:.3f}] at {last['budget'] / 1e6:.2g} million |"
            )
        words.append("")
    return "\n".join(words)


def gridworld(facts: dict[str, Any]) -> str:
    """Table, figure, and what the comparison with each rival says at each budget."""
    best = ", ".join(f"{name} {part['best']:.4f}" for name, part in facts["parts"].items())
    words = [
        "![Objective against transitions](../assets/gridworld.svg)\n", gridworld_table(facts),
        f"\nUnregularised objective (mean over 30 fresh seeds, ± half of its 95 % t-interval; best known: {best}) and, in "
        "brackets, the regularised one at tau = .05. Within 5 %: seeds whose unregularised objective misses the best known "
        "by at most 5 % of max(|best|, initial gap); in brackets the same of the regularised objective.\n",
    ]  # fmt: skip
    words.append(differences(facts))
    words += ["", broken_conditions(facts), ""]
    if facts.get("subsidy", {}).get("rows"):
        words += ["**Constant against fading temperatures, on the subsidy.**\n", subsidy_table(facts), ""]
    return "\n".join(words)


def subsidy_table(facts: dict[str, Any]) -> str:
    """Constant, fading and faster fading temperatures that start at the same value."""
    s = facts.get("subsidy", facts)
    rows = [[
        name, f"{r['mean'][-1]:.4f} ± {r['half'][-1]:.4f}", f"{r['regularised mean'][-1]:.4f}",
        f"{r['within'][-1]} of {r['runs']}", f"{r['tau at the end']:.3f}", f"{r['x']:.3f} ± {r['spread of x']:.3f}",
        f"{r['regularised x']:.3f}", f"{r['penalised x']:.3f}", f"{r['w at the end']:.2f}",
    ] for name, r in s["rows"].items()]  # fmt: skip
    heads = ["temperature", "unregularised mean", "regularised (.05)", "within 5 %", "tau at the end", "x (spread of seeds)",
             "best x at that tau", "best x of its penalty", "w at the end"]  # fmt: skip
    words = [table({"heads": heads, "rows": rows}), ""]
    for d in s["differences"]:
        interval = f"{d['difference']:+.4f} [{d['low']:+.4f}, {d['high']:+.4f}]"
        words.append(f"* {d['of']} less {d['less']}: {interval} (below 0: it ends lower)")
    return "\n".join(words)


def gridworld_claims(facts: dict[str, Any]) -> str:
    """Rates, bias and gradient dominance."""
    rows = ["| Slope of mean square gradient | at most, as claimed | measured [95 %] | verdict |", "|---" * 4 + "|"]
    for name, r in facts["rate"].items():
        interval = f"{r['slope']:.2f} [{r['low']:.2f}, {r['high']:.2f}]"
        rows.append(f"| {name} | {r['claimed at most']:.2f} | {interval} | {r['verdict']} |")
    slopes = [s[0] for s in facts["bias"]["slopes"]]
    rows.append(
        f"\nPenalty's bias: slope of log error against log w at {len(slopes)} positions {min(slopes):.2f} to "
        f"{max(slopes):.2f}.\n\nSquared policy gradient over suboptimality of the follower along runs, and the slope of its "
        "logarithm against that of the gap (above 0: it falls as the gap closes):\n\n"
        "| Run | tau | gap, first to last record | ratio: least | median | slope [95 %] |\n" + "|---" * 6 + "|"
    )
    for name, d in facts["dominance"].items():
        rows.append(
            f"| {name} | {d['tau']:.3g} | {d['gap at records'][0]:.3g} to {d['gap at records'][-1]:.3g} | "
            f"{d['least']:.2e} | {d['median']:.2e} | {d['slope']:.2f} [{d['low']:.2f}, {d['high']:.2f}] |"
        )
    rows.append("\nAt worst the ratio tends to this as the gap closes (twice the least non-null curvature at the optimum):")
    for tau, values in facts["curvature"].items():
        rows.append(f"tau = {tau}: {curvature(values)} at {len(values)} positions;")
    rows[-1] = rows[-1].rstrip(";") + "."
    return "\n".join(rows)


def curvature(values: list[float]) -> str:
    """The span of twice the least curvature, or that rounding hides it."""
    if max(values) < 1e-14:
        return "below what 64 bits can tell"
    return f"{min(values):.1e} to {max(values):.1e}"


def gridworld_search(facts: dict[str, Any]) -> str:
    """Every method's ranges, its score on the tuning seeds and the setting chosen."""
    p = facts["protocol"]
    rows = [
        f"{p['settings']} random settings a method, {p['tuning runs']} tuning seeds, plain mean of the unregularised "
        f"objective at {p['first']:,} transitions; the best {p['kept']} again to {p['second']:,}, whose mean chooses. All "
        "settings and scores are in the file. Ranges: ends of log-uniform ones, or the values to choose from.\n",
        "| Problem | Method | Score | Chosen | At an edge | Ranges | Processor seconds |",
        "|---|---|---|---|---|---|---|",
    ]
    for key, cell in facts["cells"].items():
        problem, method = key.split(" | ")
        for search in cell["searches"]:
            chosen = ", ".join(f"{k} {v if isinstance(v, str) else format(v, 'g')}" for k, v in search["chosen"].items())
            ranges = ", ".join(
                f"{k} {' or '.join(f'{x:g}' for x in v['one of'])}"
                if isinstance(v, dict)
                else f"{k} {v[0]:g} to {v[1]:g}"
                for k, v in search["ranges"].items()
            )
            edge = ", ".join(f"{k} {v}" for k, v in search["edges"].items()) or "none"
            rows.append(
                f"| {problem} | {method} | {search['score']:.4f} | {chosen} | {edge} | {ranges} | {search['seconds']:.0f} |"
            )
    return "\n".join(rows)


def gridworld_optima(facts: dict[str, Any]) -> str:
    """What the GridWorld experiment is graded by."""
    rows = ["| Problem | Unregularised | Resolution error | Regularised, tau = .05 | At the start |", "|---" * 5 + "|"]
    for name, best in facts["optima"].items():
        error = f"{best['resolution_error']:.1e}" if "resolution_error" in best else "best known, no bound"
        start = best["start"]
        rows.append(
            f"| {name} | {best['value']:.5f} | {error} | {best['regularised']['value']:.5f} | "
            f"{start['unregularised']:.4f}, {start['regularised']:.4f} |"
        )
    return "\n".join(rows)


def leaving_table(facts: dict[str, Any]) -> str:
    """What each change of the schedule does to the seeds at the optimum."""
    words = [f"{b / 1e6:g}" for b in facts["budgets"]]
    heads = ["changed", f"within 5 % of {facts['runs']} at {', '.join(words)} million", "mean x at .8 million", "spread"]
    rows = []
    for name, r in facts["rows"].items():
        at = facts["budgets"].index(800_000)
        x, spread = r["x"][at], r["spread of x"][at]
        rows.append(
            [name, ", ".join(map(str, r["within"])), f"({x[0]:.2f}, {x[1]:.2f})", f"({spread[0]:.3f}, {spread[1]:.3f})"]
        )
    places = " and ".join(f"({x[0]:.2f}, {x[1]:.2f})" for x in (facts["optimum"], facts["regularised optimum"]))
    return table({"heads": heads, "rows": rows}) + f"\n\nUnregularised and regularised optimum: {places}."


def limits_tables(facts: dict[str, Any]) -> str:
    """What temperature and penalty would cost by themselves, and what each change of the schedule does to the seeds."""
    best, weights = facts["best"], list(dict.fromkeys(p["w"] for p in facts["oracles"]))
    heads = ["tau", *("no penalty" if w is None else f"w = {w:g}" for w in weights)]
    found = {(p["tau"], p["w"]): p["unregularised"] for p in facts["oracles"]}
    rows = [
        [f"{tau:g}", *(f"{100 * (1 - found[tau, w] / best):.1f} %" for w in weights)]
        for tau in dict.fromkeys(p["tau"] for p in facts["oracles"])
    ]
    words = [table({"heads": heads, "rows": rows}), ""]
    budgets = ", ".join(f"{b / 1e6:.2g}" for b in facts["budgets"])
    heads = ["changed", f"within 5 % of {facts['runs']} at {budgets} million", "mean at the end (regularised)",
             "of the seeds' mean x", "of the penalised optimum", "spread of x"]  # fmt: skip
    rows = [[
        name, ", ".join(map(str, r["within"])), f"{r['mean'][-1]:.3f} ({r['regularised mean'][-1]:.3f})",
        f"{r['of the mean x']:.3f}", f"{r['of the penalised optimum']:.3f}", f"{r['spread of x']:.2f}",
    ] for name, r in facts["rows"].items()]  # fmt: skip
    return "\n".join([*words, table({"heads": heads, "rows": rows})])


def closer_table(facts: dict[str, Any]) -> str:
    """Where one setting stands at every other record, for both parametrisations."""
    budgets = next(iter(facts["parts"].values()))["budgets"]
    marks = range(0, len(budgets), 3)
    heads = ["goal as a", *(f"{budgets[i] / 1e6:.2g} M" for i in marks), "fewest at any record",
             "mean at the end (regularised)"]  # fmt: skip
    rows = [[
        name, *(str(r["within"][i]) for i in marks), f"{min(r['within'])} of {r['runs']}",
        f"{r['mean'][-1]:.3f} ± {r['half'][-1]:.3f} ({r['regularised mean'][-1]:.3f})",
    ] for name, r in facts["parts"].items()]  # fmt: skip
    broken = dict.fromkeys(sentence for r in facts["parts"].values() for sentence in r["broken conditions"])
    return table({"heads": heads, "rows": rows}) + "\n\nConditions of the paper that it breaks: " + "; ".join(broken) + "."


def aids_table(facts: dict[str, Any]) -> str:
    """One thing changed at a time: seeds that succeed, means, paired differences to the unchanged row."""
    marks = [_at(facts["budgets"], budget) for budget in (0.2e6, 0.4e6, 1.2e6)]
    shown = " / ".join(f"{facts['budgets'][i] / 1e6:.2g}" for i in marks if i is not None)
    words = []
    for key, cell in facts["cells"].items():
        part, label = key.split(" | ")
        rows = []
        for name, r in cell.items():
            counts = " / ".join(str(r["within"][i]) for i in marks if i is not None)
            gap, p = r.get("difference"), r.get("p (Holm)")
            interval = "" if gap is None else f"{gap[0]:+.3f} [{gap[1]:+.3f}, {gap[2]:+.3f}]"
            verdict = "" if gap is None or p >= 0.05 else "better" if gap[0] < 0 else "worse"
            rows.append([name, counts, f"{r['mean'][-1]:.3f} ({r['regularised mean']:.3f})", interval,
                         "" if p is None else "<.001" if p < 0.001 else f"{p:.3f}".lstrip("0"), verdict])  # fmt: skip
        heads = [f"goal as a {part}, *{label}*", f"within 5 % of {facts['runs']} at {shown} million",
                 "mean at the end (regularised)", "less the unchanged row, by seed", "p (Holm)", "so it is"]  # fmt: skip
        words += [table({"heads": heads, "rows": rows}), ""]
    return "\n".join(words)


def forms_table(facts: dict[str, Any]) -> str:
    """Finite differences by form of perturbation and by whose random numbers they use."""
    rows = []
    for name, r in facts["rows"].items():
        marks = [_at(r["budgets"], b) for b in GRIDWORLD_SHOWN]
        counts = " / ".join("–" if i is None else str(r["within"][i]) for i in marks)
        mean = f"{r['mean'][-1]:.3f} ± {r['half'][-1]:.3f} ({r['regularised mean'][-1]:.3f})"
        rows.append([name, f"{r['kept']} of {r['settings']}", f"{r['score']:.3f} at {r['at'] / 1e6:g} million",
                     f"{counts} of {r['runs']}", mean,
                     f"inner {r['setting']['inner']}, radius {r['setting']['radius']:g}"])  # fmt: skip
    heads = ["finite differences", "settings in the second stage", "score on the tuning seeds",
             "within 5 % at .34 / 1.1 / 3 million", "mean at 3 million (regularised)", "chosen"]  # fmt: skip
    return table({"heads": heads, "rows": rows})


def longer_table(facts: dict[str, Any]) -> str:
    """Where the rows stand when they go on to ten million transitions."""
    rows = []
    for key, r in facts["cells"].items():
        part, label = key.split(" | ")
        marks = [_at(r["budgets"], b) for b in (*GRIDWORLD_SHOWN, 10e6)]
        counts = " / ".join("–" if i is None else str(r["within"][i]) for i in marks)
        late = [n for n, b in zip(r["within"], r["budgets"], strict=True) if b > 3e6]
        rows.append([f"goal as a {part}", label, f"{counts} of {r['runs']}", f"{min(late)} of {r['runs']}",
                     f"{r['mean'][-1]:.3f} ± {r['half'][-1]:.3f} ({r['regularised mean'][-1]:.3f})"])  # fmt: skip
    heads = ["problem", "row", "within 5 % at .34 / 1.1 / 3 / 10 million", "fewest after 3 million",
             "mean at 10 million (regularised)"]  # fmt: skip
    worst = max(r["differs from the search's records"] for r in facts["cells"].values())
    same = f"Largest difference of the records that the search has too: {worst:.0e}."
    return table({"heads": heads, "rows": rows}) + "\n\n" + same


def edges_table(facts: dict[str, Any]) -> str:
    """What lies beyond each edge at which a choice stands, and the rows that are to be searched again."""
    rows = []
    for key, r in facts["rows"].items():
        part, label = key.split(" | ")
        for name, edge in r["edges"].items():
            tried = ", ".join(f"{value:g}: {'diverged' if score is None else format(score, '.3f')}"
                              for value, score in edge["beyond"])  # fmt: skip
            rows.append([f"goal as a {part}", label, f"{name}, {edge['end']}", f"{edge['value']:g}: {r['score']:.3f}",
                         tried or "none: the step would not be stable"])  # fmt: skip
    again = [f"{key.replace(' | ', ', *')}* ({100 * r['gain']:.1f} %)" for key, r in facts["rows"].items()
             if r["search again"]]  # fmt: skip
    heads = ["problem", "row", "constant, end of its range", "chosen: score", "beyond: score"]
    words = (f"Scores: mean of {facts['tuning runs']} tuning seeds at {facts['transitions']:,} transitions. Beyond an edge "
             f"better by more than {100 * facts['gain']:g} % of the best known value, so searched again in wider ranges "
             f"(153 more settings; the better of both choices is kept): {'; '.join(again) or 'no row'}.")  # fmt: skip
    return table({"heads": heads, "rows": rows}) + "\n\n" + words


def targets_table(grid: dict[str, Any], closer: dict[str, Any], population: dict[str, Any]) -> str:
    """The paper's rows against the project's targets on the 10x10 grid."""
    rows = []
    found = [(part, label, r) for part, facts in grid["parts"].items() for label, r in facts["rows"].items()
             if label in TARGETED]  # fmt: skip
    found += [(part, "one setting for both (searched more closely)", r) for part, r in closer["parts"].items()]
    for part, label, r in found:
        early, end = (_at(r["budgets"], b) for b in (0.4e6, 3e6))
        if early is None or end is None:
            continue
        later = min(r["within"][early + 1 : end + 1])
        rows.append([f"goal as a {part}", label, *(f"{n} of {r['runs']}: {'met' if n >= least else 'missed'}"
                     for n, least in ((r["within"][early], 27), (later, 27), (r["within"][end], 30)))])  # fmt: skip
    heads = ["problem", "row", "27 by .4 million", "27 at every later record to 3 million", "30 of 30 at 3 million"]
    share = population["within"][-1] / population["of"]
    words = (f"Sixteen placements, one default, 80 % of (instance, seed) pairs by 1.6 million: {share:.0%}, "
             f"{'met' if share >= 0.8 else 'missed'}.")  # fmt: skip
    return table({"heads": heads, "rows": rows}) + "\n\n" + words


def first_search_table(facts: dict[str, Any]) -> str:
    """Rows of the first, smaller search that the second has not repeated."""
    results = Path(__file__).parents[3] / "benchmarks/results"
    grid = json.loads((results / "gridworld.json").read_text())["parts"]["position"]
    rows = []
    for key, cell in facts["cells"].items():
        if key.split(" | ")[1] in grid["rows"]:
            continue
        final = cell["final"]
        marks = [_at(final["budgets"], budget) for budget in GRIDWORLD_SHOWN]
        columns = list(zip(*final["unregularised"], strict=True))
        counts = " / ".join("–" if i is None else str(sum(v <= 0.95 * grid["best"] for v in columns[i])) for i in marks)
        mean = sum(columns[-1]) / len(columns[-1])
        rows.append([key.replace(" | ", ": "), f"{mean:.3f}", f"{counts} of {len(columns[-1])}"])
    if not rows:
        return "Every row of it has been searched again since."
    return table({"heads": ["row", "mean at 3 million", "within 5 % at .34 / 1.1 / 3 million"], "rows": rows})


def population_line(facts: dict[str, Any]) -> str:
    """How many (instance, seed) pairs one setting solves."""
    counts = ", ".join(f"{n} at {b / 1e6:g} million" for n, b in zip(facts["within"], facts["budgets"], strict=True))
    pairs = f"{facts['of']} (instance, seed) pairs on {len(facts['instances'])} instances"
    return f"Within 5 % of max(|best|, initial gap), of {pairs}: {counts}."


def readme(root: Path) -> str:
    """The README with its table brought up to date."""
    words = (root / "README.md").read_text()
    facts = json.loads((root / "benchmarks/results/gridworld.json").read_text())
    start, end = "<!-- gridworld -->\n", "<!-- /gridworld -->"
    return (
        words[: words.index(start) + len(start)] + gridworld_table(facts, FIRST_SCREEN) + "\n" + words[words.index(end) :]
    )
