"""The follower's policy in words: the states it is in most, and what it does there."""

from __future__ import annotations

from typing import Any

import numpy as np

from bilevel_rl.report.collect import MethodRuns
from bilevel_rl.report.scenes import state_names

ROWS = 12  # ours: states of the table
LIKELY = 0.02  # ours: an action that is rarer is left out of the sentence
ARROWS = {(-1, 0): "up", (1, 0): "down", (0, -1): "left", (0, 1): "right", (0, 0): "stay"}


def table(method: MethodRuns) -> dict[str, Any] | None:
    """Rows of state, share of the discounted time and actions, at the end of the first run; None where none was kept."""
    arrays = method.scene
    if not {"policy", "visitation"} <= arrays.keys():
        return None
    policy, met = np.asarray(arrays["policy"][-1], float), np.asarray(arrays["visitation"][-1], float)
    states = state_names(arrays, len(policy))
    actions = action_names(arrays, states, policy.shape[1])
    allowed = np.asarray(arrays.get("allowed", np.ones(policy.shape, bool)))
    ends = np.asarray(arrays.get("ends", np.zeros(len(policy), bool)))
    rows = []
    for s in np.argsort(-met, kind="stable")[:ROWS]:
        if met[s] < 1e-4:
            break
        if ends[s]:  # everything is over
            continue
        order = [a for a in np.argsort(-policy[s], kind="stable") if policy[s, a] >= LIKELY and allowed[s, a]]
        rows.append({
            "state": states[s], "share": f"{met[s]:.1%}",
            "actions": [(actions[s][a], f"{policy[s, a]:.0%}", round(float(policy[s, a]), 3)) for a in order[:6]],
        })  # fmt: skip
    shown = f"{min(1.0, float(np.sort(met)[::-1][:ROWS].sum())):.0%}"
    return {"label": method.label, "rows": rows, "states": len(policy), "shown": shown}


def action_names(arrays: dict[str, np.ndarray], states: list[str], A: int) -> list[list[str]]:
    """Names of each state's actions: their own, directions on a grid, where they lead, else numbers."""
    given, S, leads = arrays.get("action_names"), len(states), arrays.get("leads")
    if given is not None and len(given) == A:
        return [[str(name) for name in given]] * S
    arrows = [(int(row), int(column)) for row, column in np.asarray(arrays.get("arrows", np.zeros((0, 2))))]
    if len(arrows) == A and len(set(arrows)) == A and set(arrows) <= ARROWS.keys():
        return [[ARROWS[row] for row in arrows]] * S
    numbered = [f"action {a}" for a in range(A)]
    if leads is None or "state_names" not in arrays or leads.shape != (S, A):
        return [numbered] * S
    # a name only where a state's actions lead to different places
    led = [["a new episode" if n == S else f"to {states[n]}" for n in row] for row in leads.astype(int)]
    return [words if len(set(words)) == A else numbered for words in led]
