"""`check_engine`: what an engine written elsewhere must keep, said before it learns anything."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.levels.engine import POLICIES, REWARD, Engine

CLOSE = {"atol": 1e-5, "rtol": 1e-4}


def check_engine(engine: Engine, steps: int = 2) -> None:
    """Ask an engine its four questions and compare the answers with one another.

    Args:
        engine: it samples `steps` batches twice, so its count of samples rises.
        steps: iterations looked at.

    Raises:
        InvalidProblem: naming the question, what was wrong with the answer and what to do.

    Example:
        see docs/adding/levels.md: an engine.
    """
    _check_names(engine)
    policies = [role for role in POLICIES if role in engine.names]
    for k in range(steps):
        for role in policies:
            rows = engine.sample(role, k)
            _check_rows(rows, f"sample({role!r}, {k})")
            again = engine.sample(role, k)
            same = torch.equal(engine.score(role, rows).logp, engine.score(role, again).logp)
            _need(same, f"sample({role!r}, {k})", "other rows the second time", "rows are a function of the seed and k",
                  "Draw from a generator made from (seed, a name, k)")  # fmt: skip
            _check_scores(engine, role, rows)
            _check_rewards(engine, rows)


def _check_names(engine: Engine) -> None:
    where = type(engine).__name__
    _need(POLICIES[0] in engine.names, f"{where}.names", str(engine.names), f"{POLICIES[0]!r} is always there",
          "Add it")  # fmt: skip
    _need(REWARD in engine.names, f"{where}.names", str(engine.names), f"{REWARD!r} is x", "Add it")
    for role in engine.names:
        _need(bool(engine.parameters(role)), f"parameters({role!r})", "nothing", "a role that trains has parameters",
              "Leave the role out of names, or give what it trains")  # fmt: skip
    if POLICIES[1] in engine.names:
        one, two = (engine.parameters(role) for role in POLICIES)
        equal = one.keys() == two.keys() and all(torch.equal(one[n], two[n]) for n in one)
        _need(equal, f"parameters({POLICIES[1]!r})", "other names or values than theta's",
              "both followers start from one point, or 1/w magnifies their difference",
              "Copy theta's parameters")  # fmt: skip


def _check_rows(rows: Any, where: str) -> None:
    n = rows.size
    _need(rows.mask.ndim == 2 and len(rows.mask) == n and rows.mask.is_floating_point(), f"{where}.mask",
          f"{rows.mask.dtype} {tuple(rows.mask.shape)}", f"a floating [N, T] with N = {n}", "Stack padded rows")  # fmt: skip
    _need(bool((rows.mask.sum(1) >= 1).all()), f"{where}.mask", "a row without actions", "a row has at least one",
          "Leave it out")  # fmt: skip
    for name in ("lengths", "ended", "group"):
        _need(tuple(getattr(rows, name).shape) == (n,), f"{where}.{name}", f"shape {tuple(getattr(rows, name).shape)}",
              f"[N] = [{n}]", "One number a row")  # fmt: skip


def _check_scores(engine: Engine, role: str, rows: Any) -> None:
    where = f"score({role!r}, rows)"
    scores = engine.score(role, rows)
    for name, value in scores._asdict().items():
        _need(value.shape == rows.mask.shape, f"{where}.{name}", f"shape {tuple(value.shape)}",
              f"that of the mask, {tuple(rows.mask.shape)}", "One number an action")  # fmt: skip
        _need(bool((value[rows.mask == 0] == 0).all()), f"{where}.{name}", "numbers outside the mask", "0 there",
              "Multiply by rows.mask")  # fmt: skip
    _need(bool((scores.logp <= 1e-6).all()), f"{where}.logp", "a positive log-probability", "actions are drawn from a law",
          "Normalise the law")  # fmt: skip
    _need(bool((scores.kl >= -1e-6).all()), f"{where}.kl", "a negative KL", "the exact KL of two laws",
          "Sum over all actions")  # fmt: skip
    _need(not scores.reference.requires_grad, f"{where}.reference", "a graph", "the reference is frozen",
          "Evaluate it under torch.no_grad()")  # fmt: skip
    part = engine.score(role, rows.rows(slice(0, 1))).logp
    width = part.shape[1]
    _need(torch.allclose(part[0], scores.logp[0, :width], **CLOSE), where, "another answer for a row alone",
          "a row's scores do not depend on its neighbours", "Look at padding and masks")  # fmt: skip
    _need_reach(engine, scores.logp.sum(), {role}, where)


def _check_rewards(engine: Engine, rows: Any) -> None:
    rewards = engine.rewards(rows)
    _need(tuple(rewards.shape) == (rows.size,), "rewards(rows)", f"shape {tuple(rewards.shape)}", f"[N] = [{rows.size}]",
          "One number a row")  # fmt: skip
    alone = engine.rewards(rows.rows(slice(0, 1)))
    _need(torch.allclose(alone[0], rewards[0], **CLOSE), "rewards(rows)", "another answer for a row alone",
          "a row's reward does not depend on its neighbours", "Look at padding and masks")  # fmt: skip
    _need_reach(engine, rewards.sum(), {REWARD}, "rewards(rows)")


def _need_reach(engine: Engine, value: Tensor, wanted: set[str], where: str) -> None:
    """The gradient of a value reaches the parameters of these roles, and of no other."""
    every = [(role, p) for role in engine.names for p in engine.parameters(role).values()]
    found = torch.autograd.grad(value, [p for _, p in every], allow_unused=True) if value.requires_grad else []
    reached = {role for (role, _), g in zip(every, found, strict=False) if g is not None}
    _need(reached == wanted, where, f"a gradient in {sorted(reached) or 'nothing'}", f"it depends on {sorted(wanted)} alone",
          "Look at detach, no_grad and which weights the role uses")  # fmt: skip


def _need(good: bool, where: str, got: str, allowed: str, do: str) -> None:
    if not good:
        raise InvalidProblem(message(where, got, allowed, do))
