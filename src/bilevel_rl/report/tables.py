"""The results table of a section: every method, every number with its interval."""

from __future__ import annotations

import numpy as np

from bilevel_rl import statistics
from bilevel_rl.report.collect import EQUAL, SUCCESS, MethodRuns, Section

FINITE_NOTE = (
    "Objective and gap: interquartile mean over runs with its 95 % bootstrap interval, graded by exact oracles, never by "
    "the method's own estimates. Within 5 %: runs that end within 5 % of the best known value, with its exact 95 % "
    "interval. Samples to 5 %: median over runs of the first record from which a run stays within 5 %."
)
UNEQUAL = (
    " Budgets differ: compare methods by the gap at {common:,.0f} samples, the largest budget that all of them have; the "
    "other columns are each at its own."
)
LLM_NOTE = (
    "Mean over the last tenth of a run; interquartile mean over seeds with its 95 % bootstrap interval. The gold score is "
    "the held-out classifier that no method may see; the learned reward is the model that x parameterises."
)


def results(section: Section) -> tuple[list[str], list[list[str]], str]:
    """Heads, rows (label first) and the note below."""
    return llm(section) if section.kind == "llm" else finite(section)


def finite(section: Section) -> tuple[list[str], list[list[str]], str]:
    """Table of a finite problem."""
    heads = ["method", "runs", "samples", "objective", "gap", "within 5 %", "samples to 5 %", "stopped"]
    common = section.common
    if common is not None:
        heads.insert(heads.index("gap") + 1, f"gap at {common:,.0f}")
    graded = any("regularised" in m.trace for m in section.methods)
    if graded:
        heads.insert(heads.index("objective") + 1, "regularised")
    neural = any("outcome" in m.trace for m in section.methods)
    if neural:
        heads.insert(3, "leader's outcome")
    rows = []
    for m in section.methods:
        row = [
            m.label,
            str(m.count),
            "model" if m.model_based else f"{m.trace['samples'][:, -1].mean():,.0f}",
        ]
        if neural:
            row.append(interval(m, "outcome"))
        row.append(interval(m, "objective"))
        if graded:
            row.append(interval(m, "regularised"))
        row.append(interval(m, "gap"))
        if common is not None:
            row.append("–" if m.model_based else interval(m, "gap", within(m, common)))
        row += success(m)
        stopped = sum(int((np.asarray(run.trace.get("status", 0)) != 0).sum()) for run in m.runs)
        rows.append([*row, str(stopped)])
    return heads, rows, FINITE_NOTE + ("" if common is None else UNEQUAL.format(common=common)) + temperatures(section)


def temperatures(section: Section) -> str:
    """The two temperatures: at which each method's followers answer, and at which all are graded; empty where unknown."""
    own = {}
    for m in section.methods:
        options = m.runs[0].config.get("solver_options")
        options = options if isinstance(options, dict) else {}
        scales = options.get("scales")
        tau = (scales.get("tau") if isinstance(scales, dict) else None) or options.get("tau")
        fades = isinstance(tau, dict) and tau.get("power")
        tau = tau.get("initial") if isinstance(tau, dict) else tau
        if isinstance(tau, (int, float)):
            own[m.label] = f"{tau:g}, falling" if fades else f"{tau:g}"
    grade = section.methods[0].runs[0].config.get("tau") if section.methods else None
    if not own or not isinstance(grade, (int, float)):
        return ""
    each = f"τ = {next(iter(own.values()))}" if len(set(own.values())) == 1 else ", ".join(
        f"τ = {tau} ({label})" for label, tau in own.items()
    )  # fmt: skip
    return f" Followers answer at {each}; graded at τ = {grade:g}."


def within(m: MethodRuns, budget: float) -> int:
    """The last record of a method within a budget."""
    return max(0, int(np.sum(m.trace["samples"].mean(0) <= (1 + EQUAL) * budget)) - 1)


def success(m: MethodRuns) -> list[str]:
    """Success count with interval, and samples to success."""
    if m.best is None or "gap" not in m.trace:
        return ["–", "–"]
    hits = m.trace["gap"] <= SUCCESS * abs(m.best)
    rate = statistics.success_rate(hits[:, -1])
    median = float(np.median(statistics.samples_to_target(m.trace["samples"], hits)))
    first = "–" if m.model_based or not np.isfinite(median) else f"{median:,.0f}"
    return [f"{int(hits[:, -1].sum())} of {m.count} [{rate.low:.2f}, {rate.high:.2f}]", first]


def llm(section: Section) -> tuple[list[str], list[list[str]], str]:
    """Table of a language-model task."""
    columns = [("gold", "gold score"), ("learned_reward", "learned reward"), ("kl", "KL, nats"),
               ("entropy", "entropy, nats"), ("labels", "labels"), ("samples", "tokens")]  # fmt: skip
    shown = [(k, head) for k, head in columns if any(k in m.trace for m in section.methods)]
    rows = [[m.label, str(m.count), *(interval(m, key) for key, _ in shown)] for m in section.methods]
    return ["method", "seeds", *(head for _, head in shown)], rows, LLM_NOTE


def interval(m: MethodRuns, key: str, record: int | None = None) -> str:
    """Interquartile mean over runs with its interval: of the last record, or of a noisy metric's last tenth.

    Args:
        record: another record than the last.
    """
    if key not in m.trace:
        return "–"
    series = m.trace[key] if record is None else m.trace[key][:, : record + 1]
    filled = np.flatnonzero(np.isfinite(series).all(axis=0))
    if not filled.size:
        return "–"
    if key in ("labels", "samples"):
        return f"{series[:, filled[-1]].mean():,.0f}"
    late = filled[-max(1, len(filled) // 10) :] if m.runs[0].kind == "llm" else filled[-1:]
    last = series[:, late].mean(axis=1)
    return f"{last[0]:.3g}" if np.ptp(last) == 0 else str(statistics.bootstrap(last))
