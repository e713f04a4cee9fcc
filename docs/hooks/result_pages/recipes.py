"""Recipes of policy gradients, beside GRPO of TRL."""

from __future__ import annotations

from typing import Any


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
        words.append(f"Better than TRL's GRPO at equal tokens and at equal steps, over all families together: {better}.\n")
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


def _apart(rows: dict[str, Any], key: str, sign: int) -> str:
    """Who is ahead (sign 1) or behind (-1) after Holm's correction, at equal tokens."""
    found = [n for n, r in rows.items() if key in r and sign * r[key]["mean"] > 0 and r[key]["holm"] < 0.05]
    return ", ".join(found) or "none"


def _beside(name: str, found: dict[str, Any], version: str) -> list[str]:
    """Whole recipes and TRL's GRPO on one family."""
    trl = found["trl"]
    ahead, behind = (_apart(found["recipes"], "against_trl", sign) for sign in (1, -1))
    words = [
        f"### {name}: beside GRPO of TRL {version}\n",
        f"{found['seeds']} seeds, {found['tokens']:,} tokens a run. After Holm's correction over all families, at equal "
        f"tokens: ahead {ahead}; behind {behind}.\n",
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
        f"| Component | Slot | Score | Less `{family['baseline']}`, equal tokens | The same, equal steps | Rate |",
        "|---|---|---|---|---|---|",
    ]  # fmt: skip
    for label, row in sorted(rows.items(), key=lambda item: -item[1]["mean"]):
        gaps = (_interval(row.get("against_baseline")), _interval(row.get("against_baseline_at_equal_steps")))
        cells = [f"`{label}`", row["slot"], _interval(row), *gaps]
        words.append("| " + " | ".join([*cells, f"{row['chosen']:g}{_refused(row)}"]) + " |")
    ahead, behind = (_apart(rows, "against_baseline", sign) for sign in (1, -1))
    both = ", ".join(family.get("better", [])) or "none"
    words += [
        f"\nBetter than `{family['baseline']}` at equal tokens and at equal steps: {both}. "
        f"After Holm's correction at equal tokens alone: ahead {ahead}; behind {behind}. "
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
