r"""PBRL with the value penalty: x and a policy descend $f + \tfrac1w(\max J - J)$ together.

$$\hat\theta \leftarrow \hat\theta + \alpha \nabla J \ (n \text{ times}), \qquad
(x, \theta) \leftarrow (x, \theta) - \nabla_{x,\theta}\Big[f + \tfrac1w\big(J_\tau(x, \hat\pi) - J_\tau(x, \pi)\big)\Big]$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite import ascent, oracles
from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.loop import leader
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, TimeScales


class ValuePenaltyState(State):
    """Two policies, as logits [S, A]: that of the inner loop, and the one that moves with x."""

    best: Float[Array, "S A"]
    theta: Float[Array, "S A"]


class PBRLValue(Solver):
    r"""Penalty-based bi-level RL, value penalty; uses the model, no samples.

    `exact_penalty` lets both policies take small steps; here, as in the paper, an inner loop of n steps brings
    $\hat\pi$ close to $\pi^*_\tau(x)$ before x and pi move once. Both policies move by mirror descent, pi's step in the
    natural metric of the joint penalty function (ours: the paper projects on the simplex). The sampled counterpart is
    `nested_penalty`. Supports kernels that depend on x, and every objective.

    Args:
        scales: zeta of x; alpha of both policies, in 1/reward, at most $1/\tau$; w; tau. beta is not used.
        hold: iterations for which x stays while the policies catch up; 0 is the paper's.
        inner: n >= 1.
        outer: steps of pi for each of x; the paper's one. Equal to `inner`, both policies lag behind x alike, and
            most of the lag cancels in the difference that is divided by w (ours).

    References:
        Shen, Yang, Chen 2024 (PBRL, value penalty). Cost O((inner + outer) S^3) an iteration.
    """

    scales: TimeScales = TimeScales(
        # ours: half of soft policy iteration's step at tau = .05
        PowerDecay(0.1), PowerDecay(10.0), PowerDecay(1.0), PowerDecay(0.1), PowerDecay(TEMPERATURE),
    )  # fmt: skip
    hold: float = 0.0
    inner: int = eqx.field(static=True, default=3)
    outer: int = eqx.field(static=True, default=3)

    name: ClassVar[str] = "pbrl_value"
    references: ClassVar[tuple[str, ...]] = ("shen2024pbrl",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        check_fields(
            self.name,
            ("inner", self.inner, self.inner >= 1, "it must be at least 1"),
            leader.held(self.hold),
            ("outer", self.outer, self.outer >= 1, "it must be at least 1"),
        )

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> ValuePenaltyState:
        even = jnp.zeros((problem.mdp.n_states, problem.mdp.n_actions))
        return ValuePenaltyState(x0, jnp.zeros((), int), even, even)

    def step(self, problem: BilevelProblem, state: ValuePenaltyState, k, noise) -> ValuePenaltyState:
        now, x = self.scales.at(k), state.x
        alpha = jnp.minimum(now.alpha, 1 / now.tau)
        # inner loop: pi^ <- argmax J
        best = ascent.ascend(problem, x, state.best, now.tau, alpha, steps=self.inner)
        # pi and x descend f + (J(pi^) - J(pi)) / w
        theta = ascent.ascend(problem, x, state.theta, now.tau, alpha, now.w, steps=self.outer)
        D = oracles.penalty_estimate(problem, x, jax.nn.softmax(best), jax.nn.softmax(theta), now.w, now.tau)
        moved = leader.descend(problem, x, D, k, now.zeta, self.hold)
        return ValuePenaltyState(moved, state.samples, best, theta)

    def policies(self, problem, state, k):
        return jax.nn.softmax(state.best), jax.nn.softmax(state.theta)
