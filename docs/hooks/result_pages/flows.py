"""Flows: estimators of one gradient, learning curves, x as a weight or a strength."""

from __future__ import annotations

import statistics
from typing import Any

from result_pages.words import table


def flows(facts: dict[str, Any]) -> str:
    """The parts that are there, each with its command."""
    written = {"matching": _matching, "followers": _followers, "weights": _weights}
    command = "```bash\npython benchmarks/flows.py {}\n```"
    return "\n\n".join(f"{words(facts[p])}\n\n{command.format(p)}" for p, words in written.items() if p in facts)


def _matching(part: dict[str, Any]) -> str:
    heads = ["Estimator", "Cosine with the way's policy gradient", "Scatter of 64 samples over the squared mean"]
    rows = [[name, f"{g['cosine']:.4f}", f"{g['scatter']:.3f}"] for name, g in part["gradients"].items()]
    said = "One Gaussian flow on the line, 400 batches (60: advantage weighted matching beside DDPO and Flow-GRPO):\n\n"
    curves = [
        [f"`{name}`", *(f"{_mean(c['rewards'], k):.2f}" for k in (0, 1, 3, 5)), f"{statistics.mean(c['end']):.3f}",
         f"{min(c['end']):.3f}", f"{statistics.mean(c['near']):.2f}"]
        for name, c in part["curves"].items()
    ]  # fmt: skip
    first = next(iter(part["curves"].values()))
    columns = ["Method", "Reward, iterations 1 to 50", "to 100", "to 200", "to 300", "Of the flow in the end", "Worst seed",
               "Share within .3 of the spot"]  # fmt: skip
    told = (
        f"\n\nThe spots, {len(first['end'])} seeds, {first['samples']:,} samples each, Adam at {first['rate']:g} for all, "
        "untuned (1 is the reward of a spot's middle; a spot as the data have it gets .96):\n\n"
    )
    return said + table({"heads": heads, "rows": rows}) + told + table({"heads": columns, "rows": curves})


def _mean(lines: list[list[float]], k: int) -> float:
    return statistics.mean(line[k] for line in lines)


def _followers(part: dict[str, Any]) -> str:
    kinds = {name: p for name, p in part.items() if isinstance(p, dict) and "returns" in p}
    budgets = list(next(iter(kinds.values()))["returns"])
    seeds = len(next(iter(next(iter(kinds.values()))["returns"].values()))["greedy"])
    heads = ["Follower", *(f"{int(b):,} transitions" for b in budgets), "Processor seconds"]
    cell = lambda v: f"{statistics.median(v):.0f} [{min(v):.0f}]"  # noqa: E731
    rows = [
        [f"`{n}`", *(cell(p["returns"][b]["greedy"]) for b in budgets), f"{p['cpu_seconds']:.0f}"] for n, p in kinds.items()
    ]
    said = (
        f"Pendulum's own reward, sums over 200 steps of the greedy policy, median [worst] of {seeds} seeds; width "
        f"{part['width']}, tau {part['tau']}, one update for two transitions, rows of {part['loop']['batch']}, untuned:\n\n"
    )
    return said + table({"heads": heads, "rows": rows})


def _weights(part: dict[str, Any]) -> str:
    blocks = []
    for name, p in part.items():
        rows = []
        for method, m in p["methods"].items():
            if isinstance(m["transitions"], list):
                rows += [_along(method, m, k) for k in _some(len(m["transitions"]))]
            else:
                rows.append([method, f"{m['transitions']:,}", _spread(m["x"]), _spread(m["value"])])
        heads = ["Search", "Transitions", "x, median [least, most]", "True value there"]
        words = (
            f"`{name}`: best value on a fine grid {p['best']:.3f}, at x = {p['x'][p['truth'].index(p['best'])]:.2f}; at the "
            f"ends {p['truth'][0]:.3f} and {p['truth'][-1]:.3f}; x0 = {p['x0']:g}. Values are the leader's, $-\\Phi$, by "
            "256 episodes a point.\n\n"
        )
        blocks.append(words + table({"heads": heads, "rows": rows}))
    return "\n\n".join(blocks)


def _some(count: int) -> list[int]:
    return [k for k in (2, 4, 8, 12, 16) if k < count]


def _along(method: str, m: dict[str, Any], k: int) -> list[str]:
    x, value = ([line[k] for line in m[key]] for key in ("x", "value"))
    return [f"`{method}`", f"{m['transitions'][k]:,}", _spread(x), _spread(value)]


def _spread(values: list[float]) -> str:
    return f"{statistics.median(values):.3f} [{min(values):.3f}, {max(values):.3f}]"
