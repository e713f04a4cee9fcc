"""The picture of the paper's happy tweets: gold score of what was written against labels, tokens and KL.

    python benchmarks/paper_tweets.py write --out FOLDER     writes docs/assets/paper-tweets.svg beside the results
"""

from __future__ import annotations

import io
from typing import Any

COLOURS = {
    "paired": "#d4572a", "paired_off": "#eeb49c", "partial_sgd": "#1d2229", "partial_sgd_twice": "#7b8794",
    "shared": "#0a84c6", "tilted": "#2a9d6f", "fixed_reward": "#b08900",
}  # fmt: skip
NAMES = {
    "paper_grammar": "grammar without its trap", "paper_tweets": "real tweets", "grammar": "grammar with its trap",
}  # fmt: skip
PANELS = (("labels", "labels asked for"), ("samples", "tokens generated"), ("kl", "KL to the reference (nats)"))


def drawn(tasks: dict[str, Any]) -> str:
    """An SVG: a row a task that has fresh seeds, a panel an axis.

    Args:
        tasks: of the results.

    Returns:
        The file's text.
    """
    import matplotlib as mpl

    mpl.use("Agg")
    mpl.rcParams["svg.hashsalt"] = "paper-tweets"  # the same picture is the same file
    from matplotlib import pyplot as plt

    shown = {name: task for name, task in tasks.items() if task["summary"]}
    drawing, axes = plt.subplots(len(shown), len(PANELS), figsize=(9, 2.5 * len(shown)), sharey="row", squeeze=False)
    for row, (name, task) in zip(axes, shown.items(), strict=True):
        for axis, (key, label) in zip(row, PANELS, strict=True):
            for entry, colour in COLOURS.items():
                if entry in task["summary"]:
                    line = task["summary"][entry]
                    curve = line["curve"]
                    title = f"{entry.replace('_off', ' without the bracket')} ({line['runs']} seeds)"
                    axis.plot(curve[key], curve["gold"], ".-", color=colour, label=title, lw=1.2, ms=4)
            axis.axhline(task["before"]["gold"], color="#b6bdc6", lw=0.8, ls=":")
            axis.set_xlabel(label, fontsize=8)
            axis.tick_params(labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel(f"gold score,\n{NAMES[name]}", fontsize=8)
        row[-1].legend(fontsize=6, frameon=False, loc="best")
    drawing.tight_layout()
    out = io.StringIO()
    drawing.savefig(out, format="svg", metadata={"Date": None})
    plt.close(drawing)
    return "\n".join(line.rstrip() for line in out.getvalue().splitlines()) + "\n"
