r"""PARL: the second-order hyper-gradient of policy alignment, by Hessian-vector products.

$$\nabla\Phi = \nabla_x f - \nabla^2_{x\theta} J\; v, \qquad \nabla^2_\theta J\; v = \nabla_\theta f$$
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.sparse.linalg import cg
from jaxtyping import Array, Float

from bilevel_rl.finite import ascent, oracles
from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.schedules import TEMPERATURE


class AlignmentState(State):
    """The policy as logits and the tracked solution of the Hessian system, [S, A] each."""

    theta: Float[Array, "S A"]
    v: Float[Array, "S A"]


class PolicyAlignment(Solver):
    r"""Bi-level policy alignment with second-order hyper-gradients; uses the model, no samples.

    An iteration makes n policy steps at fixed x, then at most j conjugate-gradient steps on the Hessian system from the last
    v, preconditioned by the Fisher matrix. The Hessian of J in the logits is never formed: a product with it is one
    derivative of the policy gradient, two back substitutions once the matrices are factorised. At the optimal policy
    the Hessian is negative semi-definite and the direction becomes the exact hyper-gradient as j grows; away from it it
    may be indefinite, which is what `damping` is for. Supports kernels that depend on x, and every objective.

    Args:
        step_size: zeta, constant.
        tau: temperature, in units of reward; the paper's lower level has none, and its Hessian may then be singular.
        alpha: step of the policy, in 1/reward, at most $1/\tau$.
        damping: share of the Fisher matrix (times $\tau$) that is added to the negative Hessian.
        inner: n >= 1, the paper's K.
        products: j >= 1.

    References:
        Chakraborty et al. 2024, arXiv 2308.02585 (A-PARL), in the spirit of: the hyper-gradient is the paper's; natural
        policy steps, conjugate gradients in place of a dense inverse, entropy and damping are ours. Cost O(S^3 + j S^2 A).
    """

    step_size: float = 0.1
    tau: float = TEMPERATURE
    alpha: float = 10.0
    damping: float = 1e-3
    inner: int = eqx.field(static=True, default=3)
    products: int = eqx.field(static=True, default=20)

    name: ClassVar[str] = "policy_alignment"
    references: ClassVar[tuple[str, ...]] = ("chakraborty2024parl",)

    def check(self, problem: BilevelProblem) -> None:
        check_fields(
            self.name,
            ("step_size", self.step_size, self.step_size > 0, "it must be above 0"),
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("alpha", self.alpha, self.alpha > 0, "it must be above 0"),
            ("damping", self.damping, self.damping >= 0, "it must be at least 0"),
            ("inner", self.inner, self.inner >= 1, "it must be at least 1"),
            ("products", self.products, self.products >= 1, "it must be at least 1"),
        )

    def draws(self, problem: BilevelProblem) -> int:
        return 0

    def init(self, problem: BilevelProblem, x0, key) -> AlignmentState:
        even = jnp.zeros((problem.mdp.n_states, problem.mdp.n_actions))
        return AlignmentState(x0, jnp.zeros((), int), even, even)

    def step(self, problem: BilevelProblem, state: AlignmentState, k, noise) -> AlignmentState:
        x, tau, objective = state.x, self.tau, problem.objective
        theta = ascent.ascend(problem, x, state.theta, tau, jnp.minimum(self.alpha, 1 / tau), steps=self.inner)
        pi = jax.nn.softmax(theta)
        f = lambda x, t: objective.value(x, jax.nn.softmax(t), problem)  # noqa: E731
        grad_x, grad_theta = jax.grad(f, (0, 1))(x, theta)

        # v <- H^-1 grad_theta f, H = grad^2_theta J; conjugate gradients on -H, which is positive at the optimum
        mdp = problem.transitions(x)
        fisher = jnp.maximum(planning.visitation(mdp, pi)[:, None] * pi, 1e-12) * tau / (1 - mdp.discount)
        slope = lambda t: oracles.policy_gradient(problem, x, jax.nn.softmax(t), tau)  # noqa: E731
        _, product = jax.linearize(slope, theta)
        apply = lambda v: self.damping * fisher * v - product(v)  # noqa: E731
        v, _ = cg(apply, -grad_theta, x0=state.v, tol=0.0, atol=1e-14, maxiter=self.products, M=lambda r: r / fisher)
        left = lambda v: jnp.sum((apply(v) + grad_theta) ** 2 / fisher)  # noqa: E731
        zero = jnp.zeros_like(v)
        v = jnp.where(left(v) <= left(zero), v, zero)  # where the Hessian is indefinite, an attempt may go astray

        # grad_x f - grad_x <grad_theta J, v>
        cross = lambda x: jnp.sum(oracles.policy_gradient(problem, x, pi, tau) * v)  # noqa: E731
        g = grad_x - jax.grad(cross)(x)
        return AlignmentState(problem.project(x - self.step_size * g), state.samples, theta, v)
