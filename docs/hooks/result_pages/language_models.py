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
