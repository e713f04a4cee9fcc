"""Neural followers: what was found, in sentences that the files write, and the tables against exact answers."""

from __future__ import annotations

from collections.abc import Mapping
from statistics import median
from typing import Any

from result_pages.words import table

AIMS = {"0.8": -250, "0.6": -600}  # of Pendulum's return, by the follower's discount


def found(files: Mapping[str, dict[str, Any]]) -> str:
    """Findings first: a line for each question, with what was met and what was missed.

    Args:
        files: facts by the file's name.
    """
    lines = [
        *_known(files["control_known"]), *_rooms(files.get("control_four_rooms", {})),
        *_pendulum(files["control_pendulum"]), *_hopper(files.get("control_hopper", {})),
        *_shares(files.get("control_imitation", {})), *_incentives(files["control_incentives"]),
        *_systems(files["control_systems"]), *_speed(files["control_speed"], files["control_host"]),
    ]  # fmt: skip
    return "## What was found\n\n" + "\n".join(f"* {line}" for line in lines)


def _known(facts: dict[str, Any]) -> list[str]:
    parts = facts["parts"]
    runs = {key.partition(" ")[2]: p for key, p in parts.items() if key.startswith("run ")}
    score = lambda p: f"{p['within at the end']} of {p['runs']}"  # noqa: E731
    good = [f"{name} {score(p)}" for name, p in runs.items() if p["within at the end"] >= 0.9 * p["runs"]]
    bad = [f"{name} {score(p)}" for name, p in runs.items() if p["within at the end"] < 0.9 * p["runs"]]
    both = _papers(parts, "paper ")
    papers = [f"{name} {score(p)} ({words} numbers)" for name, part in both.items() for words, p in part.items()]
    lines = [
        f"**One default where the answer is known.** Seeds within 5 % at the end: {', '.join(good)}. "
        + (f"Not reached: {', '.join(bad)}." if bad else "Nothing was missed."),
        f"**The paper's algorithm with neural followers.** {', '.join(papers)}.",
    ]
    for name, part in runs.items():
        if "within of exact descent" in part:
            lines[0] += f" {name} against what exact descent reaches from x0, {part['exact descent from x0']:.3f}: "
            lines[0] += f"{part['within of exact descent']} of {part['runs']}; x hardly moves (see below)."
    for key, part in parts.items():
        if key.startswith("search "):
            words, best = next((k, v) for k, v in part.items() if k.startswith("searched: "))
            lines[1] += f" A search of {len(part['tried'])} settings on {key.partition(' ')[2]} chose "
            lines[1] += f"{words.removeprefix('searched: ')}: {score(best)}."
        if key.startswith("fixed "):
            misses = ", ".join(f"{label} {row['bias']:.2f}" for label, row in part["rows"].items())
            lines.append(
                f"**Estimates at a fixed x** of {key.partition(' ')[2]}, {part['dimensions']} dimensions: the mean misses "
                f"the exact hyper-gradient by {misses} of its size; the covariance's cosine is "
                f"{part['rows']['covariance']['cosine']:.3f}."
            )
    return lines


def _papers(parts: dict[str, Any], start: str) -> dict[str, dict[str, Any]]:
    return {
        key.partition(" ")[2]: {words: p for words, p in part.items() if isinstance(p, dict)}
        for key, part in parts.items() if key.startswith(start)
    }  # fmt: skip


def _pendulum(facts: dict[str, Any]) -> list[str]:
    cells, said = facts["cells"], []
    for gamma, aim in AIMS.items():
        of = {k.partition(" | ")[2]: median(c["returns"]) for k, c in cells.items() if k.startswith(f"{gamma} | ")}
        chosen, rivals = of["bi-level, covariance"], {k: v for k, v in of.items() if "covariance" not in k}
        ours = of.get("bi-level, covariance, as planned", chosen)
        best = max(rivals, key=rivals.__getitem__)
        said.append(
            f"at {gamma} {ours:.0f} against {of['its own (no shaping)']:.0f} without shaping, the aim of {aim} "
            f"{'met' if ours >= aim else 'missed'}; the best rival, {best}, {rivals[best]:.0f}; "
            f"ours at the step chosen by hand at .8 {chosen:.0f}"
        )
    start = "**Pendulum, a follower that plans too short**, medians of fresh followers, x at the step that `plan` proposes: "
    return [f"{start}{'. Then '.join(said)}."]


def _hopper(facts: dict[str, Any]) -> list[str]:
    each = {k.partition(" | ")[2]: c["returns"] for k, c in facts.get("cells", {}).items()}
    said = [f"{label} {median(v):.0f} [{min(v):.0f}, {max(v):.0f}]" for label, v in each.items()]
    return [f"**Hopper, a follower that plans too short**, fresh followers, {len(v)} seeds: {'; '.join(said)}."
            for v in list(each.values())[:1]]  # fmt: skip


def _shares(facts: dict[str, Any]) -> list[str]:
    said = []
    for name, c in facts.get("cells", {}).items():
        share = [(r - c["random"]) / (c["expert"] - c["random"]) for r in c["returns"]]
        good = sum(s >= 0.9 for s in share)
        said.append(f"`{name}` {100 * median(share):.0f} %, {good} of {len(share)} seeds at 90 % or more")
    return [f"**Inverse RL**, a fresh follower's share of the expert's return: {'; '.join(said)}."] if said else []


def _rooms(facts: dict[str, Any]) -> list[str]:
    said = [f"{what}, {result}" for what, _, result in facts.get("rows", [])]
    return [f"**What four rooms takes**: {'; '.join(said)}."] if said else []


def _incentives(facts: dict[str, Any]) -> list[str]:
    rows = [dict(zip(facts["heads"], row, strict=True)) for row in facts["rows"]]
    level = lambda row: row["Follower's level within 5 %"]  # noqa: E731
    said = [
        f"{row['Problem']} with {row['Setting']} {row['x within 5 %']} (x), {row['Objective within 5 %']} (the objective)"
        + ("" if level(row) == "–" else f", {level(row)} (the follower's level)")
        for row in rows
    ]
    return [f"**Incentives with a known answer**, seeds within 5 %: {'; '.join(said)}."]


def _systems(facts: dict[str, Any]) -> list[str]:
    ends = {k.partition(" | ")[2]: median(c["returns"]) for k, c in facts["cells"].items() if "returns" in c}
    return ["**Followers of the literature** on Pendulum at equal transitions, greedy returns: "
            + ", ".join(f"{name} {value:.0f}" for name, value in ends.items()) + "."]  # fmt: skip


def _speed(facts: dict[str, Any], host: dict[str, Any]) -> list[str]:
    alone = next(v for k, v in host["per_second"].items() if "follower alone" in k)
    return [
        f"**Speed.** A seed's update costs a {facts['SB3 over ours, one seed']:.0f}th of Stable-Baselines3's, among 8 seeds "
        f"{facts['a seed-update among 8 over one alone']:.2f} of what it costs alone; the covariance makes it "
        f"{facts['estimator over follower, 8 seeds']:.2f} times that. Gymnasium's Pendulum: {alone:,.0f} steps with updates "
        f"a second. Eight seeds with a million rows each: {facts['peak GiB, 8 seeds of 1,000,000 rows']:.2f} GiB."
    ]


def control_known(facts: dict[str, Any]) -> str:
    """Neural followers against exact answers: estimates at a fixed x, whole runs, the paper's algorithm."""
    parts, blocks = facts["parts"], []
    runs = {key.partition(" ")[2]: part for key, part in parts.items() if key.startswith("run ")}
    papers = {f"{name}, {words} numbers": p for name, both in _papers(parts, "paper ").items() for words, p in both.items()}
    papers |= {f"{name}, {words}": p for name, one in _papers(parts, "search ").items() for words, p in one.items()}
    heads = ["Problem", "Transitions", "Within 5 % at the end", "9 of 10 seeds from", "within 5 % of the first gap alone",
             "Median gap", "Gap at x0", "Best value"]  # fmt: skip
    for title, found in (("`covariance` as shipped", runs), ("`penalty_actor_critic` as shipped, and searched", papers)):
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
        if key.startswith("begun "):
            blocks.append(_begun(key.partition(" ")[2], part))
        if key.startswith("why "):
            rows = [
                [label, what, *(f"{one[k]:.3f}" for k in ("miss", "spread"))]
                for label, parts_of in part["rows"].items() for what, one in parts_of.items()
            ]  # fmt: skip
            words = f"What the covariance's miss on {key.partition(' ')[2]} is made of, {part['seeds']} seeds, "
            words += f"{part['snapshots']} looks at the networks in the second half of each run:\n\n"
            columns = ["Run", "Made of", "Miss of the mean", "Spread over seeds"]
            blocks.append(words + table({"heads": columns, "rows": rows}))
    return "\n\n".join(blocks)


def _begun(name: str, part: dict[str, Any]) -> str:
    """What followers know of their first answer, beside where their whole runs end."""
    first, last = part["iterations"][0], part["iterations"][-1]
    share = lambda look, i: f"{part['off'][look][i] / part['size'][look][i]:.2f}"  # noqa: E731
    order = sorted(range(len(part["off"][0])), key=lambda i: part["gaps of the whole runs"][i])
    rows = [
        [f"{part['gaps of the whole runs'][i]:.4f}", share(0, i), f"{part['cosine'][0][i]:.2f}",
         f"{part['times too large'][0][i]:.1f}", share(-1, i), f"{part['cosine'][-1][i]:.2f}"]
        for i in order
    ]  # fmt: skip
    heads = ["Gap of the whole run", f"Means off by, of their size, after {first}", "Estimate's cosine", "Its length",
             f"Means off after {last}", "Cosine"]  # fmt: skip
    words = f"What each seed's follower knows of its first answer on {name}, x at rest (a run moves it from {first} on)"
    return words + ":\n\n" + table({"heads": heads, "rows": rows})


def _since(part: dict[str, Any]) -> str:
    """The first record from which at least nine in ten seeds stay within 5 %."""
    enough = [count >= 0.9 * part["runs"] for count in part["within"]]
    if not enough[-1]:
        return "–"
    first = max((i + 1 for i, good in enumerate(enough) if not good), default=0)
    return f"{part['transitions'][first]:,}"
