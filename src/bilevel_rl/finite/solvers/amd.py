r"""Adaptive model design: values, leader's values and their derivatives by coupled dynamic programming.

$$V \leftarrow \mathcal T V, \quad V_U \leftarrow u_\pi + \gamma P_\pi V_U, \quad
d \leftarrow (1-\gamma)\rho + \gamma P_\pi^\top d, \quad m \leftarrow b + \gamma P_\pi^\top m$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite import implicit
from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.loop import leader
from bilevel_rl.schedules import TEMPERATURE


class DesignState(State):
    """What the sweeps carry, [S] each.

    Attributes:
        V: the follower's value.
        V_u: the leader's value.
        visits: visitation d.
        m: adjoint of $\\partial_x V$.
    """

    V: Float[Array, " S"]
    V_u: Float[Array, " S"]
    visits: Float[Array, " S"]
    m: Float[Array, " S"]


class AMD(Solver):
    r"""Adaptive model design, without its S x A x S x d tensor; uses the model, no samples.

    The paper sweeps $\partial_x V \leftarrow \sum_a \pi\,\partial_x Q$, $\partial_x Q \leftarrow \partial_x r + \gamma P\,
    \partial_x V$ beside V and contracts the result with the leader's advantage. Its adjoint, swept here, contracts first:
    n sweeps of both are the same sum $\sum_{j<n} \gamma^j (P_\pi^\top)^j b$. Four vectors, each swept n times an iteration
    from where the last one ended; the direction's error falls as $\gamma^n$. Needs an objective that is linear in the
    visitation; kernels that depend on x are welcome.

    Args:
        step_size: zeta, constant.
        tau: temperature, in units of reward.
        sweeps: n >= 1.
        warm: whether sweeps start from the last iteration's vectors or from zero (as in the paper).
        clip: bound on the length of g; None for none. HPGD's authors clip at 1.
        hold: iterations for which x stays while the vectors catch up.

    References:
        Chen et al. 2022 (adaptive model design); the adjoint form is ours. Cost O(n S A K + d).
    """

    step_size: float = 0.1
    tau: float = TEMPERATURE
    sweeps: int = eqx.field(static=True, default=20)
    warm: bool = eqx.field(static=True, default=True)
    clip: float | None = None
    hold: float = 0.0

    name: ClassVar[str] = "amd"
    references: ClassVar[tuple[str, ...]] = ("chen2022amd",)

    @property
    def requires(self) -> tuple[str, ...]:
        return ("linear objective",)

    def check(self, problem: BilevelProblem) -> None:
        check_fields(
            self.name,
            ("step_size", self.step_size, self.step_size > 0, "it must be above 0"),
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("sweeps", self.sweeps, self.sweeps >= 1, "it must be at least 1"),
            leader.held(self.hold),
            ("clip", self.clip, self.clip is None or self.clip > 0, "it must be above 0, or none"),
        )

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> DesignState:
        zero = jnp.zeros(problem.mdp.n_states)
        return DesignState(x0, jnp.zeros((), int), zero, zero, zero, zero)

    def step(self, problem: BilevelProblem, state: DesignState, k, noise) -> DesignState:
        x, mdp, r = state.x, problem.transitions(state.x), problem.reward(state.x)
        gamma, objective = mdp.discount, problem.objective
        u = objective.bonus(x)
        if not self.warm:
            zero = jnp.zeros_like(state.V)
            state = DesignState(x, state.samples, zero, zero, zero, zero)

        def sweep(step, v):
            return jax.lax.scan(lambda v, _: (step(v), None), v, None, length=self.sweeps)[0]

        # V, then V_U and d under pi
        V = implicit.sweep_values(mdp, r, state.V, self.tau, self.sweeps)
        pi = planning.soft_policy(planning.action_value(mdp, r, V), self.tau)
        V_u = sweep(lambda v: jnp.sum(pi * (u + gamma * mdp.expect(v)), -1), state.V_u)
        d = sweep(lambda d: (1 - gamma) * mdp.start + gamma * mdp.flow(d[:, None] * pi), state.visits)

        # h = -d pi A_U / tau;  m <- b + gamma P_pi' m
        A_u = u + gamma * mdp.expect(V_u)
        A_u = A_u - jnp.sum(pi * A_u, -1, keepdims=True)
        h = -d[:, None] * pi * A_u / self.tau
        b = implicit.source(mdp, h)
        m = sweep(lambda m: m + b - implicit.flow_residual(mdp, pi, m), state.m)

        def direct(x):  # f at a fixed policy, its derivative through kernel and start by V_U
            moved = problem.transitions(x)
            ahead = gamma * moved.expect(V_u) if problem.moves_transitions or problem.moves_start else 0.0
            first = (1 - gamma) * jnp.dot(moved.start, V_u) if problem.moves_start else 0.0
            visits = d[:, None] * pi
            return objective.visited_value(x, visits) - jnp.sum(visits * ahead) - first

        g = jax.grad(direct)(x) + implicit.contract(problem, x, h + m[:, None] * pi, V)
        if self.clip is not None:
            g = rollouts.clipped(g, self.clip)
        moved = leader.descend(problem, x, g, k, self.step_size, self.hold)
        return DesignState(moved, state.samples, V, V_u, d, m)
