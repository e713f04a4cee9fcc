"""The suite's table as words and figures: what `bench suite` wrote, and nothing else; no engine, plots when asked."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import records, statistics
from bilevel_rl.errors import require

OURS = "coupled_penalty"
HELPED = "our baseline"  # rivals with a control variate that is ours
LEARNT = "certainty_equivalence"  # ours too: recommended for many starts where x does not move a small kernel
KINDS = ("samples", "planned", "model")
NOTE = (
    "Final objective: interquartile mean over seeds with its 95 % bootstrap interval, of the exact hyper-objective at the "
    "last x; lower is better. Within 5 %: of the best known value, by runs; samples to 5 %: median over runs of the first "
    "record from which a run stays there. Ours better: probability that a run of coupled_penalty ends lower."
)
KIND_WORDS = {
    "samples": "by samples alone",
    "planned": "the leader samples, the follower plans with the model",
    "model": "by the model, listed apart: iterations and seconds in place of samples",
}


def read(folder: str | Path) -> dict[str, Any]:
    """The table of a suite's folder, or of its JSON file.

    Raises:
        RunNotFound: there is none.
    """
    path = Path(folder)
    return records.read_json(path / "suite.json" if path.is_dir() else path)


def done(facts: dict[str, Any], task: str | None = None, kind: str | None = None) -> list[dict[str, Any]]:
    """Finished cells, of one task or kind; the recommended solver first, then by final objective."""
    cells = [c for c in facts["cells"].values() if c["status"] == "done" and task in (None, c["task"])]
    cells = [c for c in cells if kind in (None, c["kind"])]
    return sorted(cells, key=lambda c: (c["solver"] != OURS, float(statistics.interquartile_mean(ends(c)))))


def ends(cell: dict[str, Any]) -> np.ndarray:
    """Final objectives; infinite where a run stopped."""
    return np.array([np.inf if v is None else v for v in cell["final"]])


def regrets(facts: dict[str, Any], cell: dict[str, Any]) -> np.ndarray:
    """Final objectives between 0, the best known value, and 1, the mean start of the task's plain runs."""
    best = facts["tasks"][cell["task"]]["best"]["value"]
    starts = [c["first"] for c in done(facts, cell["task"]) if not c["starts"] and c["kind"] == cell["kind"]]
    return (ends(cell) - best) / max(float(np.median(starts or [cell["first"]])) - best, 1e-12)


def improvement(facts: dict[str, Any], cell: dict[str, Any]) -> float | None:
    """Probability that a run of the recommended solver ends lower than one of this cell (of the same form)."""
    ours = next(
        (c for c in done(facts, cell["task"]) if c["solver"] == OURS and c["starts"] == cell["starts"]), None
    )
    if ours is None or ours is cell or cell["kind"] != "samples":
        return None
    return statistics.probability_of_improvement(ends(ours), ends(cell))


def rows(facts: dict[str, Any], task: str, kind: str) -> tuple[list[str], list[list[str]]]:
    """Heads and rows of one task."""
    model = kind == "model"
    heads = ["method", "iterations" if model else "samples", "runs", "final objective", "within 5 %",
             "iterations to 5 %" if model else "samples to 5 %", "ms an iteration" if model else "us a sample",
             "peak MiB", "ours better"]  # fmt: skip
    lines = []
    for c in done(facts, task, kind):
        chance = improvement(facts, c)
        reached = [np.inf if v is None else v for v in c.get("reached", [])]
        first = float(np.median(reached)) if reached else np.inf
        cost = c["iteration_seconds"] if model else c["sample_seconds"]
        lines.append([
            c["method"], f"{c['iterations'] if model else c['samples']:,}", str(c["runs"]), words(ends(c)),
            f"{c['within']} of {c['runs']}" if "within" in c else "–", f"{first:,.0f}" if np.isfinite(first) else "–",
            "–" if cost is None else f"{cost * (1e3 if model else 1e6):.2g}", str(c["peak_memory_mib"]),
            "–" if chance is None else f"{chance:.0%}",
        ])  # fmt: skip
    return heads, lines


def words(values: np.ndarray) -> str:
    """Interquartile mean with its interval, to four digits."""
    if not np.isfinite(statistics.interquartile_mean(values)):
        return "stopped"
    point, low, high = statistics.bootstrap(values)
    return f"{point:.4g}" if low == high else f"{point:.4g} [{low:.4g}, {high:.4g}]"


def verdicts(facts: dict[str, Any]) -> list[list[str]]:
    """Task by task, among what samples: the recommended solver, alone and from many starts, against the best competitor."""
    lines = []
    for task, about in facts["tasks"].items():
        cells = done(facts, task, "samples")
        line = [task, "–" if about["best"] is None else f"{about['best']['value']:.4g}"]
        for many in (False, True):
            rivals = [c for c in cells if c["solver"] not in (OURS, LEARNT) and bool(c["starts"]) == many]
            helped = [c for c in rivals if HELPED in c["method"]]
            rivals = [c for c in rivals if c not in helped]
            own = recommended(cells, many)
            line += ["–" if own is None else words(ends(own)) if own["method"] == OURS else _named(own),
                     _named(rivals[0]) if rivals else "–",
                     judged(own, rivals) if own and rivals else "–"]  # fmt: skip
            if not many:
                line.append(f"{_named(helped[0])}: {judged(own, helped)}" if own and helped else "–")
        lines.append(line)
    return lines


def recommended(cells: list[dict[str, Any]], many: bool) -> dict[str, Any] | None:
    """The cell of the recommended solver. For many starts: those that share a learnt model, where it can be learnt."""
    if not many:
        return next((c for c in cells if c["solver"] == OURS and not c["starts"]), None)
    learnt = [c for c in cells if c["solver"] == LEARNT and c["method"] != LEARNT and not c["starts"]]
    return next(iter(learnt), None) or next((c for c in cells if c["solver"] == OURS and c["starts"]), None)


def _named(cell: dict[str, Any]) -> str:
    return f"{cell['method']} {words(ends(cell))}"


def judged(own: dict[str, Any], rivals: list[dict[str, Any]]) -> str:
    """`first`, `level` or `behind`: by the intervals of the interquartile means, against every rival."""
    ours = statistics.bootstrap(ends(own))
    theirs = [statistics.bootstrap(ends(c)) for c in rivals]
    if all(ours.high < t.low for t in theirs):
        return "first"
    return "behind" if any(ours.low > t.high for t in theirs) else "level"


def overall(facts: dict[str, Any]) -> list[list[str]]:
    """Method by method, over the tasks that it has with the recommended solver: regret, profile, improvement."""
    plain = [c for c in done(facts, kind="samples") if not c["starts"] and facts["tasks"][c["task"]]["best"]]
    lines = []
    for method in dict.fromkeys(c["method"] for c in plain):
        cells = [c for c in plain if c["method"] == method]
        pooled = np.concatenate([regrets(facts, c) for c in cells])
        chances = [p for c in cells if (p := improvement(facts, c)) is not None]
        lines.append([
            method, str(len(cells)), words(np.minimum(pooled, 2.0)),
            *(f"{share:.0%}" for share in statistics.performance_profile(pooled, [0.05, 0.25, 0.5])),
            f"{np.mean(chances):.0%}" if chances else "–",
            words(np.minimum(here, 2.0)) if (here := _ours_on(facts, plain, {c["task"] for c in cells})).size else "–",
        ])  # fmt: skip
    return sorted(lines, key=lambda line: (line[0] != OURS, -int(line[1]), float(line[2].split()[0])))


def _ours_on(facts: dict[str, Any], plain: list[dict[str, Any]], tasks: set[str]) -> np.ndarray:
    """Regrets of the recommended solver on the tasks that another one has: easy tasks alone flatter a method."""
    mine = [regrets(facts, c) for c in plain if c["method"] == OURS and c["task"] in tasks]
    return np.concatenate(mine) if mine else np.empty(0)


OVERALL = ["method", "tasks", "regret", "regret <= .05", "<= .25", "<= .5", "ours better", "regret of ours there"]
VERDICTS = [
    "task",
    "best known",
    "ours",
    "best rival",
    "",
    "best rival with our baseline",
    "ours, many starts",
    "best rival, many starts",
    "",
]


def markdown(facts: dict[str, Any]) -> str:
    """The results page's section."""
    settings = facts["settings"]
    parts = [
        f"{len(facts['tasks'])} tasks, {settings['runs']} seeds, every method tuned over its settings with 3 seeds each on "
        f"half the samples; the file holds every grid, score, choice and seed. `{facts['provenance']['command']}`\n",
        table(VERDICTS, verdicts(facts)),
        "\n*First*: the interval of ours lies below that of every rival that samples; *behind*: above one of them; *level* "
        "otherwise. *Ours* is coupled_penalty; from many starts certainty_equivalence, whose starts share one model of the "
        "transitions, where x does not move them, else coupled_penalty again. Methods that search from many starts get the "
        "same samples for all starts together. Rivals are as published; *with our baseline* they have a control variate of "
        "ours that matters where x moves the transitions.\n",
        "Over all tasks, runs that sample: regret is 0 at the best known value and 1 at the start (cut at 2); the "
        "last column is the regret of the recommended solver on the same tasks.\n",
        table(OVERALL, overall(facts)),
    ]
    for task, about in facts["tasks"].items():
        if not done(facts, task):
            continue
        best = about["best"]
        said = f"Best known: {best['value']:.6g} ({best['source']})." if best else ""
        parts.append(f"\n### {task[:1].upper() + task[1:]}\n\n{about['says']}. {said}\n")
        for kind in KINDS:
            heads, lines = rows(facts, task, kind)
            if lines:
                parts.append(
                    f"{KIND_WORDS[kind][:1].upper() + KIND_WORDS[kind][1:]}:\n\n{table(heads, lines)}\n"
                )
    refused = refusals(facts)
    if refused:
        parts.append(
            "\nNot applicable: " + "; ".join(f"{name}: {why}" for name, why in refused.items()) + ".\n"
        )
    return "\n".join([*parts, f"\n{NOTE}"])


def refusals(facts: dict[str, Any]) -> dict[str, str]:
    """Method -> the tasks it does not take."""
    found: dict[str, list[str]] = {}
    for c in facts["cells"].values():
        if c["status"] == "not applicable" and not c["starts"]:
            found.setdefault(c["method"], []).append(c["task"])
    return {method: ", ".join(tasks) for method, tasks in found.items()}


def choice(facts: dict[str, Any]) -> str:
    """What the table advises, for the page on choosing: the best methods of each task, those level with them named."""
    lines = []
    for task in facts["tasks"]:
        cells = done(facts, task, "samples")
        if not cells:
            continue
        first = min(cells, key=lambda c: float(statistics.interquartile_mean(ends(c))))
        bound = statistics.bootstrap(ends(first)).high
        level = [c["method"] for c in cells if c is not first and statistics.bootstrap(ends(c)).low <= bound]
        model = done(facts, task, "model")
        best = min(model, key=lambda c: float(statistics.interquartile_mean(ends(c)))) if model else None
        lines.append([
            f"{task}: {facts['tasks'][task]['says']}", f"`{first['method']}` {words(ends(first))}",
            ", ".join(f"`{name}`" for name in level) or "–",
            "–" if best is None else f"`{best['method']}` {words(ends(best))}",
        ])  # fmt: skip
    return table(["Task", "Lowest, by samples", "Level with it", "Lowest, by the model"], lines)


def table(heads: list[str], lines: list[list[str]]) -> str:
    """Markdown."""
    cells = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(c.replace("|", "/") for c in line) + " |" for line in cells)


# -- the page -----------------------------------------------------------------------------------------------------------


def build(facts: dict[str, Any], out: str | Path) -> Path:
    """Write the table as one HTML page.

    Raises:
        MissingDependency: without the extra `report`.
    """
    from bilevel_rl.report import page

    # without a cell that went by samples there is nothing to sum up
    found = [_overall(facts)] if any(done(facts, task, KINDS[0]) for task in facts["tasks"]) else []
    for i, task in enumerate(facts["tasks"]):
        found += [_section(facts, task, kind, f"t{i}{kind}") for kind in KINDS if done(facts, task, kind)]
    return page.render(found, out, "Every solver on every task", NOTE)


def _overall(facts: dict[str, Any]) -> dict[str, Any]:
    """The whole table at a glance: regret by method, and the performance profile."""
    lines = overall(facts)
    return _page("all", "All tasks", OVERALL, lines, [_profile(facts)], facts) | {
        "table_note": "Regret: 0 at the best known value, 1 at the start; interquartile mean over tasks and seeds.",
        "options": " · ".join(f"{line[0]}: {line[4] or '–'}" for line in verdicts(facts)),
    }


def _section(facts: dict[str, Any], task: str, kind: str, key: str) -> dict[str, Any]:
    heads, lines = rows(facts, task, kind)
    title = f"{task}, {KIND_WORDS[kind].partition(',')[0]}"
    return _page(key, title, heads, lines, [_curves(facts, task, kind)], facts) | {
        "options": facts["tasks"][task]["says"], "table_note": NOTE,
    }  # fmt: skip


def _page(key, title, heads, lines, drawn, facts) -> dict[str, Any]:
    from bilevel_rl.report import page, style

    section = page.section_of(key, title, drawn, facts["provenance"])
    colours = style.COLOURS
    return section | {
        "heads": heads, "rows": [[cell.partition(" [") for cell in line] for line in lines],
        "methods": [
            {"label": line[0], "colour": colours[i % len(colours)], "settings": "", "command": "", "runs": 0, "seed": 0,
             "trouble": []}
            for i, line in enumerate(lines)
        ],
    }  # fmt: skip


def _curves(facts: dict[str, Any], task: str, kind: str):
    from bilevel_rl.report import style

    x = "iterations" if kind == "model" else "samples"
    plot = style.empty(require("plotly.graph_objects", "report"), x, "objective")
    for i, c in enumerate(done(facts, task, kind)):
        plot.add_scatter(
            x=c["curve"]["at"], y=c["curve"]["objective"], name=c["method"], legendgroup=c["method"], mode="lines+markers",
            line={"color": style.COLOURS[i % len(style.COLOURS)], "width": 2},
        )  # fmt: skip
    best = facts["tasks"][task]["best"]
    if best:
        plot.add_hline(y=best["value"], line={"width": 1, "color": "#8a8f98"})
    return style.Figure(
        "curve", "Objective", "Interquartile mean over runs; thin line: the best known value.", plot
    )


def _profile(facts: dict[str, Any]):
    from bilevel_rl.report import style

    plot = style.empty(require("plotly.graph_objects", "report"), "regret at the end", "fraction of runs")
    thresholds = np.geomspace(1e-3, 2, 100)
    plain = [c for c in done(facts, kind="samples") if not c["starts"] and facts["tasks"][c["task"]]["best"]]
    found = overall(facts)
    most = max((int(line[1]) for line in found), default=0)
    for i, line in enumerate(found):
        if 2 * int(line[1]) < most:
            continue  # a method that has few of the tasks does not stand beside those that have all
        pooled = np.concatenate([regrets(facts, c) for c in plain if c["method"] == line[0]])
        share = statistics.performance_profile(pooled, thresholds)
        plot.add_scatter(
            x=thresholds.tolist(), y=share.tolist(), name=line[0], legendgroup=line[0], mode="lines",
            line={"color": style.COLOURS[i % len(style.COLOURS)], "width": 2, "shape": "hv"},
        )  # fmt: skip
    plot.update_xaxes(type="log")
    caption = (
        "Fraction of runs, over tasks and seeds, whose regret at the end is at most the value on the axis; methods "
        "that have at least half of the tasks."
    )
    return style.Figure("profile", "Performance profile", caption, plot, log_x=True)
