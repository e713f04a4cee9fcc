"""Happy tweets, and where bi-level learning can win."""

from __future__ import annotations

import itertools
from typing import Any

from result_pages.words import interval


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
            f"**{name}** (the reference scores {task['before']['gold']:.3f}; {task['runs'] - task.get('restored', 0)} runs, "
            f"{task['cpu_seconds'] / 60:.0f} minutes of processor time, beside {task.get('restored', 0)} earlier ones). "
            "The search:\n",
            "| Entry | Settings | Best mean of the tuning seeds | Chosen | At the edge of what was tried |",
            "|---|---|---|---|---|",
            *(_tweets_search(entry, lines, task, p["own"]) for entry, lines in task["search"].items()), "",
        ]  # fmt: skip
        if task["summary"]:
            heads = "| Fresh seeds of | Seeds | Gold score | KL (nats) | Different texts | Tokens |"
            parts += [heads, "|---|---|---|---|---|---|"]
        for entry, line in task["summary"].items():
            figures = f"{interval(line['gold'])} | {interval(line['kl'], 1)} | {line['distinct'][0]:.2f}"
            parts.append(f"| {entry} | {line['runs']} | {figures} | {line['tokens'][0]:,.0f} |")
        if task["differences"]:
            parts += ["", "| Difference | Seeds | Mean | Ahead | p (Holm) | Target |", "|---|---|---|---|---|---|"]
        for title, gap in task["differences"].items():
            verdict = gap["verdict"] if title in ("paired - partial_sgd", "paired - partial_sgd_twice") else ""
            cells = (title, gap["seeds"], interval(gap["difference"]), gap["ahead"], f"{gap['p_holm']:.3f}", verdict)
            parts.append("| " + " | ".join(str(cell) for cell in cells) + " |")
        if "earlier" in task:
            chosen = _tweets_setting(task["earlier"]["chosen"]["paired"])
            for title, gap in task["earlier"]["differences"].items():
                figures = f"{interval(gap['difference'])}, {gap['seeds']} seeds, ahead in {gap['ahead']}"
                parts += ["", f"With the earlier choice of `paired` ({chosen}): {title} {figures}."]
        parts += ["", *_tweets_at_equal_kl(task, p["kl_bins"]), "", *_tweets_curves(task["summary"]), ""]
    return "\n".join(parts)


def _tweets_setting(setting: dict[str, Any]) -> str:
    return ", ".join(f"{k} {v:.3g}" for k, v in setting.items() if isinstance(v, float))


def _tweets_at_equal_kl(task: dict[str, Any], bins: list[float]) -> list[str]:
    """Differences while both were as far from the reference."""
    heads = ["Difference while the KL (nats) was in", *(f"{low:g} to {high:g}" for low, high in itertools.pairwise(bins))]
    lines = [" | ".join(heads), "|".join(["---"] * len(heads))]
    for title, cells in task["at_equal_kl"].items():
        words = ("–" if cell is None else f"{interval(cell['difference'])}, {cell['seeds']} seeds" for cell in cells)
        lines.append(" | ".join([title, *words]))
    return [f"| {line} |" for line in lines] if len(lines) > 2 else []


def _tweets_curves(summary: dict[str, Any]) -> list[str]:
    """Along the runs: gold score of what was written, against labels, completions and KL."""
    marks = (1, 3, 5, 7, 9)
    lines = ["Along the run: gold score (labels, tokens, KL) after | " + " | ".join(f"{i + 1} tenths" for i in marks),
             "|".join(["---"] * (len(marks) + 1))]  # fmt: skip
    for entry, line in summary.items():
        curve = line["curve"]
        cells = (f"{curve['gold'][i]:.2f} ({curve['labels'][i]:.0f}, {curve['samples'][i]:,.0f}, {curve['kl'][i]:.1f})"
                 for i in marks if i < len(curve["gold"]))  # fmt: skip
        lines.append(" | ".join([entry, *cells]))
    return [f"| {line} |" for line in lines]


def _tweets_search(entry: str, lines: list[dict[str, Any]], task: dict[str, Any], own: dict[str, list[str]]) -> str:
    if not lines:
        return f"| {entry} | 0 | not searched | | |"
    best = max(lines, key=lambda line: line["mean"])
    names = ("optimizer", *own[METHOD.get(entry, entry)])
    words = (f"{k} {v:.3g}" if isinstance(v := best["setting"][k], (int, float)) else str(v) for k in names)
    return f"| {entry} | {len(lines)} | {best['mean']:.3f} | {', '.join(words)} | {', '.join(task['edges'][entry])} |"


METHOD = {"partial_sgd_twice": "partial_sgd"}  # entries that are another's method
