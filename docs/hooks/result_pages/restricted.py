"""Policies that can't be their reward's tilt: the enumerated world, and the language model."""

from __future__ import annotations

from typing import Any

NEAR = 0.5  # nats from the target within which a setting's gold score is shown
COLUMNS = ("fixed_reward", "partial_sgd", "fisher", "shared", "paired")


def world(facts: dict[str, Any]) -> str:
    """Gold score at equal KL, by features shared, features of the reward and labels."""
    rows = [
        "| features shared | of the reward | labels | fixed | online | `tilted` | `fisher` | `hessian` | best policy of the "
        "class |",
        "|---" * 9 + "|",
    ]
    for row in facts["rows"]:
        gaps = row["gaps"]
        ours = [
            f"{_score(row[m][0])} ({_signed(gaps[m]['mean'])} ± {_score(gaps[m]['half'])})" if m in gaps else ""
            for m in ("tilted", "fisher", "hessian")
        ]
        labels = row["labels"] if isinstance(row["labels"], str) else f"{row['labels']:,}"
        scores = [_score(row[key][0]) for key in ("fixed", "online", "bound")]
        cells = [f"{round(5 * row['shared'])} of 5", str(row["d"]), labels, *scores[:2], *ours, scores[2]]
        rows.append(f"| {' | '.join(cells)} |")
    return "\n".join(rows)


def tuning(facts: dict[str, Any]) -> str:
    """The first tuning seed: each method's best setting within half a nat of the target."""
    best: dict[str, dict[str, float]] = {}
    for line in facts["tuning"]:
        near = [gold for gold, kl in line["gold and KL of the first seed"].values() if abs(kl - facts["target_kl"]) <= NEAR]
        if near:
            best.setdefault(line["setting"], {})[line["method"]] = max(near)
    heads = [*COLUMNS, *sorted({m for found in best.values() for m in found} - set(COLUMNS))]
    rows = ["| | " + " | ".join(f"`{m}`" for m in heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for setting, found in best.items():
        cells = [f"{found[m]:.2f}".lstrip("0") if m in found else "" for m in heads]
        rows.append(f"| {setting} | {' | '.join(cells)} |")
    return "\n".join(rows)


def fresh(facts: dict[str, Any]) -> str:
    """Fresh seeds: gold score and KL of each method, and the difference to partial SGD seed by seed."""
    if not facts["summary"]:
        return ""
    rows = ["| setting | method | seeds | gold score | KL (nats) | less `partial_sgd` [95 %] | ahead | KL gap | p (Holm) |",
            "|---" * 9 + "|"]  # fmt: skip
    for line in facts["summary"]:
        gap = " |  |  | "
        if "gap" in line:
            gap = f"{_gap(line)} | {line['ahead']} | {line['kl_gap']:+.2f} | {line['p_holm']:.3f}"
        rows.append(f"| {line['setting']} | `{line['method']}`, {_own(line)} | {line['seeds']} | {_levels(line)} | {gap} |")
    return "\n".join(rows)


def control(facts: dict[str, Any]) -> str:
    """The rival with other rates than the chosen one, and every method against it."""
    rows = [
        "| setting | rival | its gold score | its KL | method | less the rival [95 %] | ahead | KL gap |",
        "|---" * 8 + "|",
    ]
    for line in facts.get("controls", ()):
        for other in line["against"]:
            rival = f"{line['setting']} | `{line['method']}`, {_own(line)} | {_levels(line)}"
            mine = f"`{other['method']}`, {_own(other)} | {_gap(other)} | {other['ahead']} | {other['kl_gap']:+.2f}"
            rows.append(f"| {rival} | {mine} |")
    return "\n".join(rows) if len(rows) > 2 else ""


def fresh_or_tuning(facts: dict[str, Any]) -> str:
    """What is there of the search, the fresh seeds and the control."""
    return "\n\n".join(part for part in (tuning(facts), fresh(facts), control(facts)) if part)


def _own(line: dict[str, Any]) -> str:
    """A method's own constants, as they were chosen."""
    names = {"zeta": "zeta", "win_rate": "weight", "learning_rate": "rate"}
    return ", ".join(f"{names[key]} {value:g}" for key, value in line["own"].items())


def _levels(line: dict[str, Any]) -> str:
    """Gold score and KL with their standard deviations over seeds."""
    return f"{line['gold'][0]:.3f} ± {line['gold'][1]:.3f} | {line['kl'][0]:.2f} ± {line['kl'][1]:.2f}"


def _gap(line: dict[str, Any]) -> str:
    """A difference with its interval."""
    low, high = line["interval"]
    return f"{line['gap']:+.3f} [{low:+.3f}, {high:+.3f}]"


def _score(value: float) -> str:
    """Three decimals, without the 0 before the point."""
    return f"{value:.3f}".replace("0.", ".", 1)


def _signed(value: float) -> str:
    return ("+" if value > 0 else "−") + _score(abs(value))
