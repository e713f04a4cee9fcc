r"""Implicit differentiation by a few Krylov iterations, warm-started: the approximate, scalable `exact_descent`.

$$V \leftarrow \mathcal T^n V, \qquad (I - \gamma P_\pi)^\top m \approx b, \qquad
x \leftarrow \Pi_X\big(x - \zeta\,[\nabla_x f + \nabla_x \langle h + m \pi,\, r_x + \gamma P_x V\rangle]\big)$$
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
from jax.scipy.sparse.linalg import bicgstab, cg
from jaxtyping import Array, Float

from bilevel_rl.finite import implicit
from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.schedules import TEMPERATURE


class KrylovState(State):
    """What is carried from one x to the next.

    Attributes:
        V: [S] the follower's value.
        m: [S] the adjoint variable.
    """

    V: Float[Array, " S"]
    m: Float[Array, " S"]


class ImplicitCG(Solver):
    r"""Approximate implicit differentiation; uses the model, no samples.

    An iteration makes n sweeps of soft value iteration and at most j Krylov iterations on the adjoint system, both from
    where the last iteration ended. As n and j grow the direction becomes the exact hyper-gradient; the error of n sweeps
    falls as $\gamma^n$. Every product is sparse: no matrix is formed. Supports kernels that depend on x, and every objective
    (one that looks at the visitation costs one linear solve more).

    Args:
        step_size: zeta, constant.
        tau: temperature, in units of reward.
        sweeps: n >= 1.
        products: j >= 1.
        method: `"bicgstab"`, or `"cg"`: conjugate gradients on the normal equations, which never break down and
            converge with the square of the condition number.

    References:
        Approximate implicit differentiation, Pedregosa 2016 and Ghadimi & Wang 2018, on the adjoint of the soft Bellman
        equation (ours: a bi-level RL paper that does just this is not known to us). Cost O((n + j) S A K + d).
    """

    step_size: float = 0.1
    tau: float = TEMPERATURE
    sweeps: int = eqx.field(static=True, default=10)
    products: int = eqx.field(static=True, default=10)
    method: Literal["bicgstab", "cg"] = eqx.field(static=True, default="bicgstab")

    name: ClassVar[str] = "implicit_cg"
    references: ClassVar[tuple[str, ...]] = ("pedregosa2016hyperparameter", "ghadimi2018approximation")

    def check(self, problem: BilevelProblem) -> None:
        check_fields(
            self.name,
            ("step_size", self.step_size, self.step_size > 0, "it must be above 0"),
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("sweeps", self.sweeps, self.sweeps >= 1, "it must be at least 1"),
            ("products", self.products, self.products >= 1, "it must be at least 1"),
            ("method", self.method, self.method in ("bicgstab", "cg"), "it must be 'bicgstab' or 'cg'"),
        )

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> KrylovState:
        zero = jnp.zeros(problem.mdp.n_states)
        return KrylovState(x0, jnp.zeros((), int), zero, zero)

    def step(self, problem: BilevelProblem, state: KrylovState, k, noise) -> KrylovState:
        x, mdp, r = state.x, problem.transitions(state.x), problem.reward(state.x)
        V = implicit.sweep_values(mdp, r, state.V, self.tau, self.sweeps)
        Q = planning.action_value(mdp, r, V)
        pi = planning.soft_policy(Q, self.tau)
        grad_x, h = implicit.objective_slopes(problem, x, Q, self.tau)

        # (I - gamma P_pi)' m = b, from the last m; an attempt that breaks down or goes astray is not taken
        b = implicit.source(mdp, h)
        apply, back = implicit.operators(mdp, pi)
        if self.method == "cg":
            m, _ = cg(lambda m: back(apply(m)), back(b), x0=state.m, tol=0.0, atol=1e-14, maxiter=self.products)
        else:
            m, _ = bicgstab(apply, b, x0=state.m, tol=0.0, atol=1e-14, maxiter=self.products)
        swept = b + state.m - apply(state.m)  # one sweep of amd: always safe
        better = jnp.linalg.norm(b - apply(m)) <= jnp.linalg.norm(b - apply(swept))
        m = jnp.where(better, m, swept)

        g = grad_x + implicit.contract(problem, x, h + m[:, None] * pi, V)
        return KrylovState(problem.project(x - self.step_size * g), state.samples, V, m)
