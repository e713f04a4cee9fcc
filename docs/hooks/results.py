"""docs/results/*.md from benchmarks/results/*.json. Run it after a benchmark: `python docs/hooks/results.py`."""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any, NamedTuple

HEAD = """Written by `docs/hooks/results.py` from `benchmarks/results/*.json` whenever the site is built. Each file there
holds the full record: grids, choices, every seed. How to make them again: [Reproduce](../reproduce.md).
"""


class Topic(NamedTuple):
    """A page of results: the files whose names begin with one of `files`, the longest beginning deciding."""

    page: str
    title: str
    files: tuple[str, ...]
    about: str


TOPICS = (
    Topic("paper", "The paper's GridWorld", ("gridworld",), "the paper's first experiment: searches, budgets, both grades, "
          "why the optimum is left, fading against constant temperature"),
    Topic("happy-tweets", "Happy tweets and language models", ("happy_tweets", "online_or_bilevel", "llm_estimators", "llm",
          "paper_tweets"), "the paper's second experiment, the estimators, where bi-level learning can win"),
    Topic("methods", "Every method on every problem", ("suite",), "all solvers on all tasks at equal samples, tuned alike"),
    Topic("defaults", "Defaults on random instances", ("population", "quality", "search", "reliability", "braess"),
          "what a newcomer gets without tuning; what kills, corruptions and bad inputs do"),
    Topic("competitors", "Published figures, reached and passed", ("published", "peers", "exact_search", "four_rooms_samples"),
          "the competing methods at their own budgets, best known values"),
    Topic("control", "Neural followers", ("control",), "followers with networks in environments"),
    Topic("policy-gradient", "Policy-gradient catalogue", ("policy_gradient", "recipes"),
          "components and recipes beside GRPO of TRL"),
    Topic("speed", "Speed and scaling", ("speed", "scaling", "moving", "counted_memory", "llm_speed", "peers_speed",
          "race_cost", "paired_speed"),
          "cost and memory along states, dimensions, runs and tokens"),
    Topic("more", "More", ("",), "whatever has no topic yet"),
)  # fmt: skip


def on_pre_build(config, **_) -> None:
    """MkDocs calls this before a build: the pages are always what the files say."""
    write(Path(config.docs_dir).parent)


def write(root: Path) -> None:
    """Write the pages that changed."""
    for name, words in pages(root).items():
        path = root / "docs/results" / name
        path.parent.mkdir(exist_ok=True)
        if not path.exists() or path.read_text() != words:
            path.write_text(words)


def pages(root: Path) -> dict[str, str]:
    """Every page of results by its file name, the list of them included."""
    files: dict[Topic, list[Path]] = {topic: [] for topic in TOPICS}
    for file in sorted((root / "benchmarks/results").glob("*.json")):
        files[topic_of(file.stem)].append(file)
    found = {topic: some for topic, some in files.items() if some}
    rows = "\n".join(f"| [{topic.title}]({topic.page}.md) | {topic.about} |" for topic in found)
    made = {"index.md": f"# Results\n\n{HEAD}\n| Page | What was measured |\n|---|---|\n{rows}\n"}
    for topic, some in found.items():
        made[f"{topic.page}.md"] = page(topic, some)
    return made


def topic_of(stem: str) -> Topic:
    """The page of a file."""
    fits = [(len(start), -i, topic) for i, topic in enumerate(TOPICS) for start in topic.files if stem.startswith(start)]
    return max(fits, key=lambda fit: fit[:2])[2]


def page(topic: Topic, files: list[Path]) -> str:
    """A topic: a section a file."""
    parts = [f"# {topic.title}\n\n{HEAD}"]
    for file in files:
        facts = json.loads(file.read_text())
        parts.append(f"## {file.stem.replace('_', ' ').capitalize()}\n\n{machine(facts)}\n{aged(facts)}")
        parts.append(WRITERS.get(file.stem, plain)(facts))
    return "\n".join(part.rstrip() + "\n" for part in parts)


def machine(facts: dict[str, Any]) -> str:
    """Where it was measured."""
    hardware = facts.get("hardware") or facts.get("provenance", {}).get("hardware") or {}
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
    """A plain word where numbers of `coupled_penalty` are older than its defaults."""
    versions = facts.get("provenance", {}).get("versions", {})
    old = versions.get("bilevel-rl", "").startswith("0.1")
    return EARLIER.replace("FOLDER", folder) if old and "coupled_penalty" in json.dumps(facts) else ""


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
        early = "–" if small is None else f"{small} of {cell['runs']}"
        rows.append(
            f"| {problem} | {method} | {format(cell['samples'], ',') if cell['samples'] else 'model'} | "
            f"{cell['within_5_percent']} of {cell['runs']} | {early} | "
            f"{cell['median_gap']:.2g} | {chosen} |"
        )
    return "\n".join(rows)


POPULATION_DRAWS = {
    "reporting": "random instances (reporting draw)", "tuning": "random instances (tuning draw)",
    "reference": "reference grids",
}  # fmt: skip


def population(facts: dict[str, Any]) -> str:
    """Draw and kind by variant: runs that succeed, early and late, and where exact descent from the same start does."""
    rows = [
        "Solvers as shipped on instances that nobody arranged: goal placements, mazes, frozen lakes, random MDPs, tolls, "
        "drawn at random from a seed fixed before any run; 128,000 transitions a run. A run succeeds when its gap is at "
        "most 5 % of max(|best|, initial gap). *Solvable*: where exact descent from the same start succeeds; what is lost "
        "elsewhere is another basin. `python benchmarks/population.py` makes it again.\n",
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


GRIDWORLD_SHOWN = (0.4e6, 1.2e6, 3e6)  # budgets of the table: the last record within each


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


def online_or_bilevel(facts: dict[str, Any]) -> str:
    """Gold score at equal KL, with all labels in the world."""
    rows = [
        "Gold score at equal KL, interquartile mean over random instances; labels without end. The last columns: the "
        "bi-level optimum less online RLHF's fixed point, median and largest, where its "
        "iteration settles and where it does not.\n",
        "| Gold score | features | KL | instances | fixed reward | online | bi-level | any reward | settled | "
        "gap, settled | gap, not settled |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in facts["rows"]:
        scores = " | ".join(
            "" if row[m] is None else f"{row[m][0]:.3f}" for m in ("fixed", "online", "bilevel", "anything")
        )
        gaps = " | ".join(
            "" if row[key] is None else f"{row[key][0]:.4f}, {row[key][1]:.3f}"
            for key in ("gap_settled", "gap_unsettled")
        )
        rows.append(
            f"| {row['kind']} | {row['d']} | {row['kl']:g} | {row['compared']} | {scores} | {row['settled']:.0%} | {gaps} |"
        )
    return "\n".join(rows)


def happy_tweets(facts: dict[str, Any]) -> str:
    """Every method of every call: final gold score and KL, and the gold score while the KL was in a bin."""
    parts = [facts["note"] + "\n" if facts["note"] else ""]
    parts += [
        "Final policies at equal labels, tokens and tau, seed by seed, all calls on the grammar together; last, the "
        "difference at equal KL by regression on KL and its square, with 95 % limits.\n",
        "| Method | against | pairs | ahead | mean gold gap | p (Wilcoxon) | KL gap (nats) | gap at equal KL |",
        "|---|---|---|---|---|---|---|---|",
        *(
            f"| {line['ours']} | {line['theirs']} | {line['pairs']} | {line['ahead']} | {line['mean']:+.3f} | "
            f"{line['p']:.3f} | {line['kl']:+.2f} | {line['at_equal_kl']:+.3f} ± {line['at_equal_kl_error']:.3f} |"
            for line in facts["pooled"]
        ),
        "",
    ]
    for experiment in facts["experiments"]:
        bins = [f"{low:g}-{high:g}" for low, high in itertools.pairwise(experiment["kl_bins"])][2:]
        settings = experiment["settings"]
        gold = experiment["models"]["gold"]
        parts += [
            f"**{experiment['task']}: {settings['labels']} labels, {settings['rollouts']} rollouts, "
            f"tau {settings['tau']:g}.** Gold classifier {gold['accuracy']:.1%} of {gold['held_out']} "
            f"(most frequent label {gold['majority']:.1%}). Interquartile mean [95 % bootstrap "
            "interval]; the last columns: gold score while the KL was in that range.\n",
            "| Method | Seeds | Labels | Tokens | Gold score | KL (nats) | Distinct | " + " | ".join(bins) + " |",
            "|---" * (7 + len(bins)) + "|",
        ]
        for line in experiment["summary"]:
            middle = ["" if cell is None else f"{cell[0]:.2f}" for cell in line["gold_by_kl"]][2:]
            parts.append(
                f"| {line['method']} | {line['runs']} | {line['labels']:.0f} | {line['tokens']:,.0f} | "
                f"{interval(line['gold'])} | {interval(line['kl'], 1)} | {line['distinct'][0]:.2f} | {' | '.join(middle)} |"
            )
        parts.append("")
    return "\n".join(parts)


def paper_tweets(facts: dict[str, Any]) -> str:
    """The paper's happy tweets: methods, differences by seed, the choices of the search."""
    p = facts["protocol"]
    parts = [
        f"VADER is judge and gold score, without noise; {p['labels']} labels, tau {p['tau']:g}. Mean [95 % interval of "
        "Student's t] over fresh seeds. Differences are seed by seed, p after Holm's correction over the lines of a table. "
        f"Met: the lower end lies above -{p['near']:g}; undecided: half the interval is longer than that.\n"
    ]
    for name, task in facts["tasks"].items():
        parts += [
            f"**{name}** (the reference scores {task['before']['gold']:.3f}; {task['runs']} runs, "
            f"{task['cpu_seconds'] / 60:.0f} minutes of processor time). The search:\n",
            "| Entry | Settings | Best mean of the tuning seeds | Chosen | At the edge of what was tried |", "|---|---|---|---|---|",
            *(_tweets_search(entry, lines, task, p["own"]) for entry, lines in task["search"].items()), "",
        ]  # fmt: skip
        if task["summary"]:
            parts += ["| Fresh seeds of | Seeds | Gold score | KL (nats) | Different texts | Tokens |", "|---|---|---|---|---|---|"]
        for entry, line in task["summary"].items():
            figures = f"{interval(line['gold'])} | {interval(line['kl'], 1)} | {line['distinct'][0]:.2f} | {line['tokens'][0]:,.0f}"
            parts.append(f"| {entry} | {line['runs']} | {figures} |")
        if task["differences"]:
            parts += ["", "| Difference | Seeds | Mean | Ahead | p (Holm) | Target |", "|---|---|---|---|---|---|"]
        for title, gap in task["differences"].items():
            verdict = gap["verdict"] if title == "paired - partial_sgd" else ""
            cells = (title, gap["seeds"], interval(gap["difference"]), gap["ahead"], f"{gap['p_holm']:.3f}", verdict)
            parts.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        parts.append("")
    return "\n".join(parts)


def _tweets_search(entry: str, lines: list[dict[str, Any]], task: dict[str, Any], own: dict[str, list[str]]) -> str:
    if not lines:
        return f"| {entry} | 0 | not searched | | |"
    best = max(lines, key=lambda line: line["mean"])
    names = ("optimizer", *own[METHOD.get(entry, entry)])
    words = (f"{k} {v:.3g}" if isinstance(v := best["setting"][k], (int, float)) else str(v) for k in names)
    return f"| {entry} | {len(lines)} | {best['mean']:.3f} | {', '.join(words)} | {', '.join(task['edges'][entry])} |"


METHOD = {"partial_sgd_twice": "partial_sgd"}  # entries that are another's method


def interval(values: list[float], digits: int = 2) -> str:
    """A figure with its interval."""
    middle, low, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} [{low}, {high}]"


def _worse(rows: dict[str, Any], key: str) -> list[str]:
    """Who is behind after Holm's correction, at equal tokens."""
    return [n for n, r in rows.items() if key in r and r[key]["mean"] < 0 and r[key]["holm"] < 0.05]


def recipes(facts: dict[str, Any]) -> str:
    """Recipes beside TRL, each family's components against its baseline, every named recipe once; what did not help."""
    words = [
        f"{facts['task']} Mean [95 % interval of Student's t]. Rates: each variant, and TRL, from the same few, on seeds "
        "that do not count; *refused* means that the best rate stayed at an edge. Differences are seed by seed. Better "
        "means: a paired t-test after Holm's correction, at equal tokens and at equal gradient steps. "
        "`bilevel-rl bench recipes` makes it again, and `--list` says what the whole study costs.\n"
    ]
    if facts.get("partial"):
        words.append(f"**What was run.** {facts['partial']}\n")
    for name, found in facts["beside_trl"].items():
        words += _beside(name, found, facts["versions"]["trl"])
    if facts["beside_trl"]:
        better = ", ".join(facts["better_than_trl"]) or "none"
        words.append(f"Better than TRL's GRPO, over all families together: {better}.\n")
    for name, family in facts["families"].items():
        words += _family(name, family)
    for name, labels in facts.get("without_record", {}).items():
        if labels:
            words.append(f"In the table of {name}, without a record yet: {', '.join(f'`{label}`' for label in labels)}.\n")
    for seeds, laws in facts.get("coverage", {}).items():
        shares = "; ".join(f"{law}: " + ", ".join(f"{k} {v:.3f}" for k, v in kinds.items()) for law, kinds in laws.items())
        words.append(f"Simulated coverage of 95 % intervals at {seeds} runs: {shares}.\n")
    words += _named(facts.get("named", {}))
    words += ["Not run here: " + "; ".join(f"`{k}` ({v})" for k, v in facts["not_run"].items()) + "."]
    return "\n".join(words)


def _beside(name: str, found: dict[str, Any], version: str) -> list[str]:
    """Whole recipes and TRL's GRPO on one family."""
    trl = found["trl"]
    worse = ", ".join(_worse(found["recipes"], "against_trl")) or "none"
    words = [
        f"### {name}: beside GRPO of TRL {version}\n",
        f"{found['seeds']} seeds, {found['tokens']:,} tokens a run. Worse after Holm's correction: {worse}.\n",
        "| Recipe | Score | Less TRL, equal tokens | Less TRL, equal steps | Steps a batch, rate |", "|---|---|---|---|---|",
        f"| **TRL's GRPO** | {_interval(trl)} | | | {trl['chosen'][0]}, {trl['chosen'][1]:g}{_refused(trl)} |",
    ]  # fmt: skip
    for label, row in sorted(found["recipes"].items(), key=lambda item: -item[1]["mean"]):
        steps, rate = row["chosen"]
        gaps = (_interval(row["against_trl"]), _interval(row.get("against_trl_at_equal_steps")))
        cells = [f"`{label}`", _interval(row), *gaps]
        words.append("| " + " | ".join([*cells, f"{steps}, {rate:g}{_refused(row)}"]) + " |")
    return [*words, ""]


def _family(name: str, family: dict[str, Any]) -> list[str]:
    """Components of one family."""
    rows = family["variants"]
    words = [
        f"### {name}: {family['tokens']:,} tokens a run, {family.get('seeds', 5)} seeds\n",
        f"| Component | Slot | Score | Less `{family['baseline']}` | Rate |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for label, row in sorted(rows.items(), key=lambda item: -item[1]["mean"]):
        cells = [f"`{label}`", row["slot"], _interval(row), _interval(row.get("against_baseline"))]
        words.append("| " + " | ".join([*cells, f"{row['chosen']:g}{_refused(row)}"]) + " |")
    worse, ahead = _worse(rows, "against_baseline"), family.get("better", [])
    words += [
        f"\nBetter than `{family['baseline']}`: {', '.join(ahead) or 'none'}. "
        f"Worse after Holm's correction: {', '.join(worse) or 'none'}. "
        f"The others make no difference that these seeds show.\n"
    ]
    return words


def _named(rows: dict[str, Any]) -> list[str]:
    """Every named recipe, once."""
    if not rows:
        return []
    words = [
        "### Every named recipe, once\n",
        "End to end on a task that feeds it: 3,000 tokens, one seed, one rate for all. That they run, not how well.\n",
        "| Recipe | Task | Before | After | Gradient steps |", "|---|---|---|---|---|",
    ]  # fmt: skip
    for name, row in rows.items():
        words.append(
            f"| `{name}` | {row['task']} | {row['before']:.3f} | {row['score']:.3f} | {row['gradient_steps']:.0f} |"
        )
    return [*words, ""]


def _refused(row: dict[str, Any]) -> str:
    return ", refused" if row.get("refused") else ""


def _interval(row: dict[str, float] | None) -> str:
    return "" if row is None else f"{row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]"


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
    return page[: page.index(start) + len(start)] + words.choice(facts) + "\n" + aged(facts, "results/") + page[page.index(end) :]


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


def braess(facts: dict[str, Any]) -> str:
    """Where the runs end, beside the best toll."""
    ends = [row[-1] for row in facts["tolls"]]
    rows = ["| Run | Toll (hours) | Minutes |", "|---|---|---|"]
    rows += [f"| {i} | {x:.3f} | {60 * h:.2f} |" for i, (x, h) in enumerate(zip(ends, facts["hours"], strict=True))]
    rows += [f"| best known | {facts['best_toll']:.3f} | {60 * facts['best_hours']:.2f} |",
             f"| without a toll | 0 | {60 * facts['hours_without']:.2f} |"]  # fmt: skip
    return f"`coupled_penalty` as shipped on `braess`, {facts['samples']:,} transitions a run.\n\n" + "\n".join(rows)


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
        f"Upper values as the studies count them; what differs and why: [Published figures](../published.md). {facts['rule']} "
        f"Of {len(facts['cells'])} cells, {counts}.\n",
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


def control_known(facts: dict[str, Any]) -> str:
    """Neural followers against exact answers: estimates at a fixed x, whole runs, the paper's algorithm."""
    parts, blocks = facts["parts"], []
    runs = {key.partition(" ")[2]: part for key, part in parts.items() if key.startswith("run ")}
    papers = {
        f"{key.partition(' ')[2]}, {words} numbers": part
        for key, parts_of in parts.items() if key.startswith("paper ")
        for words, part in parts_of.items() if isinstance(part, dict)
    }  # fmt: skip
    heads = ["Problem", "Transitions", "Within 5 % at the end", "9 of 10 seeds from", "within 5 % of the first gap alone",
             "Median gap", "Gap at x0", "Best value"]  # fmt: skip
    for title, found in (("`covariance` as shipped", runs), ("`penalty_actor_critic` as shipped", papers)):
        if not found:
            continue
        rows = [
            [
                name, f"{part['transitions'][-1]:,}", f"{part['within at the end']} of {part['runs']}", _since(part),
                f"{sum(gap <= 0.05 * part['gap at x0'] for gap in part['gaps at the end'])} of {part['runs']}",
                f"{part['median gap'][-1]:.4f}", f"{part['gap at x0']:.4f}", f"{part['best value']:.4f}",
            ]
            for name, part in found.items()
        ]  # fmt: skip
        blocks.append(f"{title}:\n\n" + table({"heads": heads, "rows": rows}))
    for key, part in parts.items():
        if key.startswith("fixed "):
            rows = [[name, *(f"{row[k]:.3f}" for k in ("bias", "spread", "cosine"))] for name, row in part["rows"].items()]
            words = f"Estimates at x0 of {key.partition(' ')[2]}, means over the last moves, {part['seeds']} seeds, "
            words += f"{part['transitions']:,} transitions of all followers, over the size of the exact hyper-gradient:\n\n"
            columns = ["Estimator", "Bias", "Spread over seeds", "Cosine of the mean"]
            blocks.append(words + table({"heads": columns, "rows": rows}))
    return "\n\n".join(blocks)


def _since(part: dict[str, Any]) -> str:
    """The first record from which at least nine in ten seeds stay within 5 %."""
    enough = [count >= 0.9 * part["runs"] for count in part["within"]]
    if not enough[-1]:
        return "–"
    first = max((i + 1 for i, good in enumerate(enough) if not good), default=0)
    return f"{part['transitions'][first]:,}"


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


# README rows: label of the search -> words
FIRST_SCREEN = {
    "as published": "**the paper's algorithm, as published**",
    "+ common random numbers": "**+ common random numbers (ours)**",
    "as published, conditions kept": "as published, alpha/beta within its conditions",
    "as published, one chain": "as published, one chain",
    "+ hold, momentum, averaging": "+ common numbers, hold, momentum, averaging (ours)",
    "+ steady followers and w": "the same, steady critics, actors and w (ours)",
    "+ its exponents": "the same, exponents searched too (ours)",
    "nested_penalty, as published": "nested loop, as published",
    "nested_penalty": "nested loop + common numbers, hold, momentum, averaging (ours)",
    "nested_penalty, + its exponents": "the same, exponents searched too (ours)",
    "finite_difference": "finite differences, common numbers",
    "finite_difference, independent numbers": "finite differences",
    "partial_sgd": "partial SGD",
    "constant entropy": "the paper's, constant entropy, our aids",
    "coupled_penalty": "**`coupled_penalty` (ours)**, as shipped (position: with its earlier schedule of w)",
}


def readme(root: Path) -> str:
    """The README with its table brought up to date."""
    words = (root / "README.md").read_text()
    facts = json.loads((root / "benchmarks/results/gridworld.json").read_text())
    start, end = "<!-- gridworld -->\n", "<!-- /gridworld -->"
    return (
        words[: words.index(start) + len(start)] + gridworld_table(facts, FIRST_SCREEN) + "\n" + words[words.index(end) :]
    )


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


def first_search_table(facts: dict[str, Any], best: float | None = None) -> str:
    """Rows of the first, smaller search that the second has not repeated."""
    if best is None:
        results = Path(__file__).parents[2] / "benchmarks/results"
        best = json.loads((results / "gridworld_optima.json").read_text())["optima"]["position"]["value"]
    rows = []
    for key, cell in facts["cells"].items():
        final = cell["final"]
        marks = [_at(final["budgets"], budget) for budget in GRIDWORLD_SHOWN]
        columns = list(zip(*final["unregularised"], strict=True))
        counts = " / ".join("–" if i is None else str(sum(v <= 0.95 * best for v in columns[i])) for i in marks)
        mean = sum(columns[-1]) / len(columns[-1])
        rows.append([key.replace(" | ", ": "), f"{mean:.3f}", f"{counts} of {len(columns[-1])}"])
    return table({"heads": ["row", "mean at 3 million", "within 5 % at .34 / 1.1 / 3 million"], "rows": rows})


def population_line(facts: dict[str, Any]) -> str:
    """How many (instance, seed) pairs one setting solves."""
    counts = ", ".join(f"{n} at {b / 1e6:g} million" for n, b in zip(facts["within"], facts["budgets"], strict=True))
    pairs = f"{facts['of']} (instance, seed) pairs on {len(facts['instances'])} instances"
    return f"Within 5 % of max(|best|, initial gap), of {pairs}: {counts}."


def verdicts(root: Path) -> str:
    """One row a claim: where it was read, the test, the figure, the verdict by the rule of the page."""
    folder = root / "benchmarks/results"
    grid, claims = (json.loads((folder / f"{name}.json").read_text()) for name in ("gridworld", "gridworld_claims"))
    rows = []

    def versus(of: str, rivals: list[str], part: str) -> tuple[int, int, int]:
        some = [d for d in grid["parts"][part]["differences"] if d["of"] == of and d["less"] in rivals]
        return sum(d["high"] < 0 for d in some), sum(d["low"] > 0 for d in some), len(some)

    def judged(of: str, rivals: list[str]) -> tuple[str, str]:
        found = {part: versus(of, rivals, part) for part in grid["parts"]}
        words = "; ".join(
            f"goal as a {p}: ahead at {a} of {n} budgets, behind at {b}" for p, (a, b, n) in found.items() if n
        )
        ahead, behind = (sum(v[i] for v in found.values()) for i in (0, 1))
        verdict = "mixed" if ahead and behind else "contradicted here" if behind else "consistent" if ahead else "undecided"
        return words, verdict

    for name, rivals in (
        ("partial SGD", ["partial_sgd"]),
        ("finite differences", ["finite_difference", "finite_difference, independent numbers"]),
        ("the nested loop", ["nested_penalty, as published"]),
    ):
        for of in (
            "as published", "as published, one chain", "as published, conditions kept", "+ common random numbers",
            "+ steady followers and w", "+ its exponents",
        ):  # fmt: skip
            figure, verdict = judged(of, rivals)
            if not figure:
                continue
            who = f"the paper's algorithm, {of}" if of.startswith("as published") else f"{of} (ours)"
            rows.append([f"faster and better than {name}", "summary", f"{who}, equal search", figure, verdict])
    for label, r in claims["rate"].items():
        rows.append([
            f"samples to a stationary point, {label}: slope at most {r['claimed at most']:.2f}", "summary (rates)",
            "mean square gradient over samples, 10 states", f"{r['slope']:.2f} [{r['low']:.2f}, {r['high']:.2f}]",
            r["verdict"],
        ])  # fmt: skip
    slopes = [s for s, _, _ in claims["bias"]["slopes"]]
    rows.append([
        "the penalty's gradient is off by O(w)", "summary", "exact oracles, slope against w",
        f"{min(slopes):.2f} to {max(slopes):.2f}", "consistent" if min(slopes) > 0.9 else "contradicted",
    ])  # fmt: skip
    found = claims["dominance"]
    words = "; ".join(f"*{n}*: least {d['least']:.1e}, slope {d['slope']:.2f} [{d['low']:.2f}, {d['high']:.2f}]"
                      for n, d in found.items())  # fmt: skip
    limits = "; ".join(f"{curvature(values)} at tau = {tau}" for tau, values in claims["curvature"].items())
    rows.append([
        "a Polyak-Lojasiewicz type condition of the lower level", "abstract",
        "squared policy gradient over suboptimality along runs, and its slope against the gap; curvature at the optimum",
        f"{words}; limit at the optimum at worst {limits}",
        "consistent" if all(d["low"] <= 0 for d in found.values())
        else "consistent, with a constant that shrinks as the gap closes",
    ])  # fmt: skip
    paired = json.loads((folder / "gridworld_temperature.json").read_text())
    fading = [x for x in paired["differences"] if x["of"].startswith("fading")]
    figure = "; ".join(
        f"from {x['of'].split()[-1]}: {x['difference']:+.4f} [{x['low']:+.4f}, {x['high']:+.4f}]" for x in fading
    )
    better, worse = sum(x["high"] < 0 for x in fading), sum(x["low"] > 0 for x in fading)
    rows.append([
        "fading regularisation reaches the unregularised problem, constant regularisation ends elsewhere",
        "abstract; summary",
        "fading less constant from the same temperature, all else the same, on the subsidy", figure,
        "mixed" if worse and better else "contradicted here" if worse else "consistent" if better else "undecided",
    ])  # fmt: skip
    return table({"heads": ["Claim", "Read in", "Test", "Figure", "Verdict"], "rows": rows})


def claims(root: Path) -> str:
    """The page of the paper's claims, its figures brought up to date."""
    page, folder = (root / "docs/claims.md").read_text(), root / "benchmarks/results"
    facts = {
        name: json.loads((folder / f"{name}.json").read_text())
        for name in ("gridworld", "gridworld_claims", "gridworld_closer", "gridworld_first_search", "gridworld_leaving",
                     "gridworld_limits", "gridworld_population", "gridworld_temperature")
    }
    blocks = {
        "verdicts": verdicts(root), "broken": broken_conditions(facts["gridworld"]),
        "differences": differences(facts["gridworld"]),
        "leaving": leaving_table(facts["gridworld_leaving"]), "limits": limits_tables(facts["gridworld_limits"]),
        "closer": closer_table(facts["gridworld_closer"]), "first": first_search_table(facts["gridworld_first_search"]),
        "subsidy": subsidy_table(facts["gridworld_temperature"]),
        "searched": subsidy_table(facts["gridworld"]),
        "claims": gridworld_claims(facts["gridworld_claims"]), "population": population_line(facts["gridworld_population"]),
    }  # fmt: skip
    for name, words in blocks.items():
        start, end = f"<!-- {name} -->\n", f"<!-- /{name} -->"
        page = page[: page.index(start) + len(start)] + words.strip() + "\n" + page[page.index(end) :]
    return page


WRITERS = {
    "suite": suite,
    "exact_search": exact_search,
    "published": published,
    "peers": peers, "reliability": reliability,
    "scaling": scaling, "moving": moving, "braess": braess,
    "search": table, "four_rooms_samples": table, "counted_memory": table,
    "population": population, "quality": quality, "gridworld": gridworld, "gridworld_search": gridworld_search,
    "gridworld_optima": gridworld_optima,
    "gridworld_claims": gridworld_claims, "gridworld_leaving": leaving_table,
    "gridworld_limits": limits_tables, "gridworld_closer": closer_table,
    "gridworld_first_search": first_search_table,
    "gridworld_population": population_line, "gridworld_temperature": subsidy_table,
    "online_or_bilevel": online_or_bilevel, "happy_tweets": happy_tweets,
    "recipes": recipes, "control_known": control_known,
    "control_pendulum": noted, "control_incentives": noted, "control_imitation": noted, "control_host": noted,
    "paper_tweets": paper_tweets, "race_cost": table,
}  # fmt: skip

if __name__ == "__main__":
    here = Path(__file__).parents[2]
    write(here)
    (here / "README.md").write_text(readme(here))
    (here / "docs/how-to-choose.md").write_text(choose(here))
    (here / "docs/claims.md").write_text(claims(here))
