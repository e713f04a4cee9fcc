"""Transition tables as Gymnasium's toy-text environments hold them: `P[s][a] = [(probability, s', reward, done), ...]`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from bilevel_rl.errors import InvalidProblem, message


@dataclasses.dataclass(frozen=True)
class Table:
    """A table that has been looked through.

    Attributes:
        outcomes: one dictionary a state, from its actions to lists of (probability, next state, reward, done).
        start: [S] distribution of the first state.
        n_actions: A; a state may offer fewer.
    """

    outcomes: list[dict[int, list[tuple[float, int, float, bool]]]]
    start: np.ndarray
    n_actions: int

    @property
    def n_states(self) -> int:
        """S."""
        return len(self.outcomes)

    def arrays(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Successors and probabilities [S, A, K], equal successors added up, an end as successor S; and [S, A] allowed."""
        S, A = self.n_states, self.n_actions
        merged = [{a: self._merged(rows) for a, rows in offered.items()} for offered in self.outcomes]
        K = max(len(row) for offered in merged for row in offered.values())
        successors, probabilities, allowed = np.zeros((S, A, K), int), np.zeros((S, A, K)), np.zeros((S, A), bool)
        for s, offered in enumerate(merged):
            for a, row in offered.items():
                allowed[s, a] = True
                for k, (s_next, p) in enumerate(row.items()):
                    successors[s, a, k], probabilities[s, a, k] = s_next, p
        return successors, probabilities, allowed

    def rewards(self) -> np.ndarray:
        """[S, A] expected rewards; 0 for actions that a state does not offer."""
        table = np.zeros((self.n_states, self.n_actions))
        for s, offered in enumerate(self.outcomes):
            for a, rows in offered.items():
                table[s, a] = sum(p * r for p, _, r, _ in rows)
        return table

    def _merged(self, rows: list[tuple[float, int, float, bool]]) -> dict[int, float]:
        merged: dict[int, float] = {}
        for p, s_next, _, done in rows:
            key = self.n_states if done else s_next
            merged[key] = merged.get(key, 0.0) + p
        return {s: p for s, p in merged.items() if p > 0}


def read(env: Any, options: dict[str, Any]) -> Table:
    """The table of an environment, of its id, or of any object with `P`.

    Raises:
        InvalidConfig: an id that Gymnasium does not know.
        InvalidProblem: there is none, or it is malformed; the message names the state, action and outcome.
    """
    if isinstance(env, str):
        from bilevel_rl.host import made  # a table of one's own needs no Gymnasium

        env = made.by_id(env, options, "FiniteMDP.from_gymnasium")
    bare = getattr(env, "unwrapped", env)
    if not hasattr(bare, "P"):
        raise InvalidProblem(
            message(f"FiniteMDP.from_gymnasium({env})", "an environment without a transition table",
                    "it must have `P` (FrozenLake, CliffWalking, Taxi)",
                    "Build the arrays yourself and use FiniteMDP.from_sparse")
        )  # fmt: skip
    states = _numbered("P", bare.P)
    outcomes = []
    for s, offered in enumerate(states):
        rows = offered if isinstance(offered, Mapping) else dict(enumerate(offered))
        if not rows or not all(isinstance(a, (int, np.integer)) and a >= 0 for a in rows):
            raise _malformed(f"P[{s}]", f"actions {list(rows)}", "a state offers at least one action, numbered from 0")
        outcomes.append({int(a): _outcomes(s, int(a), rows[a], len(states)) for a in rows})
    start = getattr(bare, "initial_state_distrib", None)
    start = np.full(len(states), 1 / len(states)) if start is None else np.asarray(start, float)
    return Table(outcomes, start, 1 + max(a for offered in outcomes for a in offered))


def _numbered(where: str, table: Any) -> list[Any]:
    """What a list or a dictionary with the keys 0, 1, ... holds, in order."""
    if not isinstance(table, Mapping):
        return list(table)
    if not table or set(table) != set(range(len(table))):
        raise _malformed(where, f"states {sorted(table, key=str)[:5]} ...", "its keys must be 0, 1, ..., S - 1")
    return [table[i] for i in range(len(table))]


def _outcomes(s: int, a: int, rows: Any, n_states: int) -> list[tuple[float, int, float, bool]]:
    found = []
    for k, row in enumerate(rows):
        where = f"P[{s}][{a}][{k}]"
        try:
            p, s_next, r, done = row
            p, r, index, done = float(p), float(r), int(s_next), bool(done)
        except (TypeError, ValueError) as error:
            raise _malformed(where, repr(row), "it must be (probability, next state, reward, done)") from error
        if not (math.isfinite(p) and math.isfinite(r) and p >= 0):
            raise _malformed(where, repr(row), "probabilities must be at least 0, and all numbers finite")
        if index != s_next or not 0 <= index < n_states:
            raise _malformed(where, f"next state {s_next}", f"states are numbered 0..{n_states - 1}")
        found.append((p, index, r, done))
    if not found:
        raise _malformed(f"P[{s}][{a}]", "no outcome", "an action has at least one; leave out what is not offered")
    return found


def _malformed(where: str, got: str, allowed: str) -> InvalidProblem:
    return InvalidProblem(message(where, got, allowed, "Mend the table"))
