"""The paper's happy tweets: two countings, brackets, exchanged steps, noise, equal KL, curves."""

from __future__ import annotations

import itertools
from typing import Any

from result_pages.words import interval

Task = dict[str, Any]
TASKS = {
    "paper_grammar": "Our grammar without its trap", "paper_tweets": "Real tweets (TweetEval)",
    "grammar": "Our grammar with its trap",
}  # fmt: skip
METHOD = {"partial_sgd_twice": "partial_sgd"}  # entries that are another's method
# heading, entries, the one that the others are compared with
COUNTINGS = {
    "updates": ("At equal policy updates ({updates})", ("paired", "partial_sgd", "shared", "tilted"), "partial_sgd"),
    "completions": (
        "At equal completions ({batches} batches)", ("paired", "partial_sgd_twice", "fixed_reward"), "partial_sgd_twice",
    ),
}  # fmt: skip
TARGETS = ("paired - partial_sgd", "paired - partial_sgd_twice")
POLICY = ("Seeds", "Gold score", "KL (nats)", "Different texts", "Tokens a text")
MARKS = (1, 3, 5, 7, 9)  # tenths of a run that are shown


def rows_of(heads: list[str], lines: list[list[Any]]) -> str:
    """Heads and lines as Markdown."""
    written = [heads, ["---"] * len(heads), *lines]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in written)


def by_task(facts: Task, writer: Any) -> str:
    """What a writer says of each task that it says something of, under the task's name."""
    said = {name: words for name, task in facts["tasks"].items() if (words := writer(task, facts["protocol"]))}
    return "\n\n".join(f"**{TASKS[name]}.**{'' if words[0] == chr(10) else ' '}{words}" for name, words in said.items())


def chance(p: float) -> str:
    """A p-value, or that it is small.

    Example:
        >>> chance(0.0001), chance(0.04)
        ('< .001', '0.040')
    """
    return "< .001" if p < 0.001 else f"{p:.3f}"


def paper_tweets(facts: Task) -> str:
    """Everything: the protocol, the searches, and all tables."""
    p = facts["protocol"]
    about = (
        f"VADER is judge and gold score, without noise; {p['labels']} labels, tau {p['tau']:g}. Mean [95 % interval of "
        "Student's t] over fresh seeds. Differences are seed by seed, p after Holm's correction over all of a task. "
        f"Met: the lower end lies above -{p['near']:g}; undecided: half the interval is longer than that."
    )
    parts = [about, by_task(facts, search)]
    for title, writer in (
        ("Two countings", countings), ("What the bracket is worth", brackets), ("Steps exchanged", swaps),
        ("Noise of the bracket", noise), ("At equal KL", at_equal_kl), ("Along the runs", curves),
        ("The same runs with other arithmetic", again),
    ):  # fmt: skip
        if words := by_task(facts, writer):
            parts += [f"### {title}", words]
    return "\n\n".join(parts) + "\n"


def search(task: Task, p: Task) -> str:
    """Settings tried, and what was chosen."""
    own = p["own"]
    lines = []
    for entry, tried in task["search"].items():
        names = ("optimizer", *own[METHOD.get(entry, entry)])
        if entry in task.get("fixed", ()):
            lines.append([entry, 0, "found by hand", _words(task["chosen"][entry], names), ""])
            continue
        if not tried:
            lines.append([entry, 0, "not searched", "", ""])
            continue
        best = max(tried, key=lambda line: line["mean"])
        edges = ", ".join(task["edges"][entry])
        lines.append([entry, len(tried), f"{best['mean']:.3f}", _words(best["setting"], names), edges])
    earlier = f", beside {task['restored']} of an earlier study" if task.get("restored") else ""
    return (
        f"The reference scores {task['before']['gold']:.3f}; {task['runs'] - task.get('restored', 0)} runs, "
        f"{task['cpu_seconds'] / 60:.0f} minutes of processor time{earlier}. The search:\n\n"
    ) + rows_of(["Entry", "Settings", "Best mean of the tuning seeds", "Chosen", "At the edge of what was tried"], lines)


def _words(setting: dict[str, Any], names: tuple[str, ...]) -> str:
    """A setting's own constants."""
    values = ((name, setting[name]) for name in names)
    return ", ".join(f"{k} {v:.3g}" if isinstance(v, (int, float)) else str(v) for k, v in values)


def countings(task: Task, p: Task) -> str:
    """The fresh seeds at equal updates, and at equal completions."""
    parts = []
    for title, entries, rival in COUNTINGS.values():
        lines = []
        for entry in entries:
            if entry not in task["summary"]:
                continue
            line = task["summary"][entry]
            spent = [f"{line['labels'][0]:.0f}", f"{line['tokens'][0]:,.0f}"]
            lines.append([f"`{entry}`", line["runs"], *_policy(line), *spent, *_against(task, entry, rival)])
        if len(lines) > 1:
            updates = task.get("updates", p["updates"])
            said = title.format(updates=updates, batches=2 * updates)
            heads = [said, *POLICY, "Labels", "Tokens", f"Less `{rival}`, seed by seed", "Ahead", "p (Holm)", "Target"]
            parts.append(rows_of(heads, lines))
    return f"(The reference: {task['before']['gold']:.2f}.)\n\n" + "\n\n".join(parts) if parts else ""


def _policy(line: dict[str, Any]) -> list[str]:
    """What policies are: gold score, KL, different texts, tokens a text."""
    texts = [f"{line['distinct'][0]:.2f}", f"{line['length'][0]:.1f}"]
    return [interval(line["gold"]), interval(line["kl"], 1), *texts]


def _against(task: Task, entry: str, rival: str) -> list[str]:
    title = f"{entry} - {rival}"
    gap = task["differences"].get(title)
    if gap is None:
        return [""] * 4
    verdict = gap["verdict"] if title in TARGETS else ""
    return [interval(gap["difference"]), f"{gap['ahead']} of {gap['seeds']}", chance(gap["p_holm"]), verdict]


def brackets(task: Task, p: Task) -> str:
    """Every bi-level entry with and without its bracket, all else the same."""
    lines = []
    for entry in ("paired", "shared", "tilted"):
        gap = task["differences"].get(f"{entry} - {entry} without the bracket")
        if gap is not None:
            on, off = (interval(task["summary"][name]["gold"]) for name in (entry, f"{entry}_off"))
            ahead = f"{gap['ahead']} of {gap['seeds']}"
            lines.append([f"`{entry}`", on, off, interval(gap["difference"]), ahead, chance(gap["p_holm"])])
    for title, gap in task.get("earlier", {}).get("differences", {}).items():
        if title.endswith("without the bracket"):
            ahead = f"{gap['ahead']} of {gap['seeds']}"
            name = f"`{title.split()[0]}`, its first round's choice"
            lines.append([name, "", "", interval(gap["difference"]), ahead, chance(gap["p_holm"])])
    heads = ["Entry", "With the bracket", "Without", "Difference, seed by seed", "Ahead", "p (Holm)"]
    return "\n\n" + rows_of(heads, lines) if lines else ""


def swaps(task: Task, p: Task) -> str:
    """Runs with another method's steps."""
    found = task.get("swaps")
    if not found:
        return ""
    lines = [[name, line["runs"], *_policy(line)] for name, line in found["summary"].items()]
    gaps = [[title, interval(gap["difference"]), gap["ahead"]] for title, gap in found["differences"].items()]
    return (
        "\n\n" + rows_of(["Runs", *POLICY], lines)
        + "\n\n" + rows_of(["Difference, seed by seed", "Mean", "Ahead"], gaps)
    )  # fmt: skip


def noise(task: Task, p: Task) -> str:
    """Signal and spread of one step's gradients in x, at frozen states."""
    found = task.get("noise")
    if not found:
        return ""
    names = {
        "race": "bracket, race (the default)", "inverse": "bracket, inverse laws",
        "none": "bracket, independent numbers", "direct": "likelihood of the labels",
    }  # fmt: skip
    lines = []
    for law, name in names.items():
        line = found["gradients"][law]
        alike = found["tokens_alike"].get(law)
        lines.append([
            name, *(", ".join(f"{v:.3g}" for v in line[key]) for key in ("mean", "spread")),
            "" if alike is None else ", ".join(f"{v:.0%}" for v in alike),
        ])  # fmt: skip
    heads = ["Gradient in x", "Norm of its mean", "Spread of one draw", "Tokens that both policies wrote alike"]
    about = (
        f"After {found['updates_before']} updates of `paired`, at {len(found['states'])} seeds, everything frozen and "
        f"{found['draws']} draws by each law:\n\n"
    )
    return about + rows_of(heads, lines)


def at_equal_kl(task: Task, p: Task) -> str:
    """Differences while both were as far from the reference."""
    pairs = itertools.pairwise(p["kl_bins"])
    heads = ["Difference while the KL (nats) was in", *(f"{low:g} to {high:g}" for low, high in pairs)]
    lines = []
    for title, cells in task["at_equal_kl"].items():
        words = ("–" if cell is None else f"{interval(cell['difference'])}, {cell['seeds']} seeds" for cell in cells)
        lines.append([title, *words])
    return "\n\n" + rows_of(heads, lines) if lines else ""


def curves(task: Task, p: Task) -> str:
    """Along the runs: gold score of what was written, against labels, tokens and KL."""
    heads = ["Gold score (labels, tokens, KL) after", *(f"{i + 1} tenths" for i in MARKS)]
    lines = []
    for entry, line in task["summary"].items():
        curve = line["curve"]
        lines.append([entry.replace("_off", " without the bracket"), *(
            f"{curve['gold'][i]:.2f} ({curve['labels'][i]:.0f}, {curve['samples'][i]:,.0f}, {curve['kl'][i]:.1f})"
            for i in MARKS if i < len(curve["gold"])
        )])  # fmt: skip
    return "\n\n" + rows_of(heads, lines) if lines else ""


def again(task: Task, p: Task) -> str:
    """Seeds that were run a second time."""
    lines = [
        [f"`{entry}`", line["seeds"], interval(line["first"]), interval(line["again"]), interval(line["difference"]),
         f"{line['alike']} of {line['seeds']}", f"{line['largest']:.2f}"]
        for entry, line in task.get("again", {}).items()
    ]  # fmt: skip
    heads = ["Entry", "Seeds", "First", "Again", "Difference", "Seeds alike to four digits", "Largest change of a seed"]
    return "\n\n" + rows_of(heads, lines) if lines else ""


def claim_rows(facts: Task) -> list[list[str]]:
    """The claim on happy tweets, a row for each task and counting that was run: as the page of claims has them."""
    found = []
    for name, task in facts["tasks"].items():
        for title, counting in zip(TARGETS, ("equal policy updates", "equal completions"), strict=True):
            gap = task["differences"].get(title)
            if gap is None:
                continue
            middle, low, high = gap["difference"]
            verdict = "consistent" if low > 0 else "contradicted here" if high < 0 else "undecided"
            found.append([
                "ahead of partial SGD on happy tweets", "summary",
                f"+ common random numbers (ours), {TASKS[name][0].lower() + TASKS[name][1:]}, equal labels, {counting}",
                f"{middle:+.2f} [{low:+.2f}, {high:+.2f}] over {gap['seeds']} fresh seeds (above 0: ahead)", verdict,
            ])  # fmt: skip
    return found


def inside(writer: Any) -> Any:
    """A table of `facts` for a page of the guide."""
    return lambda facts: by_task(facts, writer)
