r"""Many followers who meet each other: a reward that depends on what the whole population does.

One policy is played by all; $\mu(s,a) = d^\pi(s)\,\pi(a|s)$ is the share of the population that is in s and does a. In
equilibrium nobody gains by another policy, given what the others do:

$$\pi_\tau(x) = \mathrm{argmax}_\pi J_\tau\big(\pi;\, r_x(\cdot, \mu)\big), \qquad \mu = B\big(r_x(\cdot, \mu)\big)$$

where B(r) is the flow of the entropy-regularised optimum for the reward r. The leader minimises f(x, mu) there: a
mathematical program with equilibrium constraints, of which a single follower is the case without interaction.

**Its hyper-gradient, without a second derivative.** B is the gradient of a convex function of r, so $B'$ is symmetric and

$$\nabla\Phi = \nabla_x f + \kappa \cdot \nabla_x r, \qquad \kappa = B'\lambda, \qquad
\lambda = \nabla_\mu f + (\partial r/\partial \mu)^\top \kappa \qquad \text{(ours: derived)}$$

which is the hyper-gradient of one follower in a population held at mu, for the utility $u = -\lambda$: what a pair is worth
to the leader is charged with what it does to the others' rewards. `held` writes that problem down; `exact` answers come from
the fixed point itself, differentiated by the implicit function theorem.
"""

from __future__ import annotations

import abc
from typing import ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl import metrics as M
from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite import oracles
from bilevel_rl.finite.model import linear, planning
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem, UpperObjective
from bilevel_rl.loop import precision

TOLERANCE = 1e-12  # ours: the sum of what a flow differs from the answer to it, at which Newton's steps stop
REFUSED = 1e-9  # ours: above this it is no equilibrium
STEPS = 200  # ours: bound on Newton's steps
PAIRS = 1024  # ours: up to so many pairs of state and action the exact equilibrium factorises a dense Jacobian


class Equilibrium(NamedTuple):
    """What a population does when nobody gains by another policy.

    Attributes:
        mu: [S, A] its flow; sums to one.
        residual: the sum of what it differs from the answer to it.
    """

    mu: Float[Array, "S A"]
    residual: Float[Array, ""]


class FlowObjective(UpperObjective):
    r"""An upper objective of the flow of a population, $f(x, \mu)$: write `of`."""

    @abc.abstractmethod
    def of(self, x: Float[Array, " d"], mu: Float[Array, "S A"], problem: BilevelProblem) -> Float[Array, ""]:
        """f, differentiable in x and mu."""

    def value(self, x, pi, problem):
        return self.of(x, flow(problem.transitions(x), pi), problem)


class MeanFieldProblem(BilevelProblem):
    r"""Minimise $f(x, \mu_\tau(x))$ where $\mu_\tau(x)$ is a population's equilibrium under x.

    Subclass it and write `reward_among`. Everything exact finds the equilibrium first; what learns from transitions,
    `coupled_penalty`, keeps a running estimate of the flow and of what follows from it. The objective is a `FlowObjective`,
    or one that is linear in the visitation.

    Example:
        >>> class Crowded(MeanFieldProblem):
        ...     def reward_among(self, x, mu):  # two places; each is worth less the more are there
        ...         return jnp.stack([x[0] - mu[:, 0], -mu[:, 1]], axis=1)
    """

    mean_field: ClassVar[bool] = True

    @abc.abstractmethod
    def reward_among(self, x: Float[Array, " d"], mu: Float[Array, "S A"]) -> Float[Array, "S A"]:
        r"""$r_x(\cdot, \mu)$, differentiable in both; mu may be slightly off a flow."""

    def equilibrium(self, x: Float[Array, " d"], tau) -> Equilibrium:
        """The population's equilibrium, by Newton's method on the fixed point; differentiable in x.

        Raises:
            InvalidProblem: temperature 0, or more than `PAIRS` pairs of state and action.
            Unsolved: the residual stays above `REFUSED`; in compiled code mu is NaN.
        """
        return equilibrium(self, x, tau)

    def reward(self, x):
        """The reward that a follower faces in the equilibrium, at the follower's own temperature."""
        return self.faced(x, self.follower_temperature())

    def faced(self, x, tau):
        return self.reward_among(x, self.equilibrium(x, tau).mu)

    def held(self, x: Float[Array, " d"], mu: Float[Array, "S A"], kappa: Float[Array, "S A"]) -> HeldPopulation:
        r"""The problem of one follower in a population held at mu, with the utility $-\lambda$ of the module's formula."""

        def upper(mu):
            if isinstance(self.objective, FlowObjective):
                return self.objective.of(x, mu, self)
            return self.objective.cost(x) - jnp.sum(mu * self.objective.bonus(x))

        met = jax.vjp(lambda mu: self.reward_among(x, mu), mu)[1](kappa)[0]
        utility = -jax.grad(upper)(mu) - met
        return HeldPopulation(mdp=self.mdp, objective=Linearised(self, mu, utility), x0=self.x0, game=self, mu=mu)

    def without_equilibrium(self):
        """One follower among many who act at random: an equilibrium takes seconds to compile, for each of four checks."""
        return _among_idlers(self)

    def measures(self, solver, state, k, tau):
        """The hyper-objective and its gradient by the equilibrium; what one follower gains by leaving the tracked policy."""
        value, slope = jax.value_and_grad(lambda x: oracles.hyper_objective(self, x, tau))(state.x)
        values = {M.OBJECTIVE.key: value, M.GRADIENT_NORM.key: jnp.linalg.norm(slope)}
        tracked = solver.tracked(self, state, k)
        if tracked is not None:
            mdp = self.transitions(state.x)
            r = self.reward_among(state.x, flow(mdp, tracked))
            best = planning.soft_optimal(mdp, r, tau)
            values[M.LOWER_GAP.key] = jnp.dot(mdp.start, best.V - planning.policy_value(mdp, r, tracked, tau))
        if not self._drawn():
            return values, None
        mu = self.equilibrium(state.x, tau).mu
        among = self.reward_among(state.x, mu)
        best = planning.soft_optimal(self.transitions(state.x), among, tau)
        values[M.FOLLOWER_VALUE.key] = jnp.dot(self.mdp.start, best.V)
        met = jnp.sum(mu, axis=1, keepdims=True)  # where nobody comes, any action is as good a picture
        return values, jnp.where(met > 0, mu, 1.0) / jnp.where(met > 0, met, mu.shape[1])


@eqx.filter_jit
def _among_idlers(problem: MeanFieldProblem) -> HeldPopulation:
    S, A = problem.mdp.n_states, problem.mdp.n_actions
    uniform = planning.soft_policy(jnp.zeros((S, A)) + problem.mdp.mask, 1.0)
    mu = flow(problem.transitions(problem.x0), uniform)
    return problem.held(problem.x0, mu, jnp.zeros((S, A)))


class Linearised(UpperObjective):
    """f around a flow: linear in the visitation, its derivative in x that of f at that flow."""

    game: MeanFieldProblem
    mu: Float[Array, "S A"]
    utility: Float[Array, "S A"]

    def bonus(self, x):
        return self.utility

    def cost(self, x):
        upper = self.game.objective
        if isinstance(upper, FlowObjective):
            f = upper.of(x, self.mu, self.game)
        else:
            f = upper.cost(x) - jnp.sum(self.mu * upper.bonus(x))
        return f + jnp.sum(self.mu * self.utility)

    def value(self, x, pi, problem):
        return self.cost(x) - jnp.sum(flow(problem.transitions(x), pi) * self.utility)


class HeldPopulation(BilevelProblem):
    """One follower in a population whose flow is held: see `MeanFieldProblem.held`."""

    game: MeanFieldProblem
    mu: Float[Array, "S A"]

    def reward(self, x):
        return self.game.reward_among(x, self.mu)

    def transitions(self, x):
        return self.game.transitions(x)

    @property
    def moves_transitions(self):
        return self.game.moves_transitions

    @property
    def moves_start(self):  # type: ignore[override]
        return self.game.moves_start

    def project(self, x):
        return self.game.project(x)

    def box(self):
        return self.game.box()


@precision.double
def flow(mdp: FiniteMDP, pi: Float[Array, "S A"]) -> Float[Array, "S A"]:
    r"""$\mu(s,a) = d^\pi(s)\,\pi(a|s)$."""
    return planning.visitation(mdp, pi)[:, None] * pi


@precision.double
def equilibrium(problem: MeanFieldProblem, x: Float[Array, " d"], tau) -> Equilibrium:
    r"""The fixed point $\mu = B(r_x(\cdot,\mu))$ by damped Newton steps, $(I - B'r_\mu + \epsilon I)\,\delta = B(r) - \mu$.

    The damping $\epsilon$ falls while the residual does and rises where a step would not lower it; it is what carries the
    method over the kinks that a low temperature leaves. Then one more step, now differentiated, as in `soft_optimal`.

    Raises:
        InvalidProblem, Unsolved: as `MeanFieldProblem.equilibrium`.
    """
    S, A = problem.mdp.n_states, problem.mdp.n_actions
    if isinstance(tau, (int, float)) and tau <= 0:
        raise InvalidProblem(
            message(f"{problem.name}.equilibrium", f"temperature {tau}", "a population is graded at a temperature above 0",
                    "Return a small one from `temperature`, such as 0.01 in units of reward")
        )  # fmt: skip
    if S * A > PAIRS:
        raise InvalidProblem(
            message(f"{problem.name}.equilibrium", f"{S} states and {A} actions",
                    f"the exact equilibrium factorises a matrix of S A rows, at most {PAIRS}",
                    "Run coupled_penalty with evaluate=False, or make the game smaller")
        )  # fmt: skip

    found = _fixed_point(problem, x, jnp.asarray(tau, float))
    linear.refuse(f"the equilibrium of {problem.name}", found.residual, REFUSED, "Raise the temperature")
    return found


@eqx.filter_jit
def _fixed_point(problem: MeanFieldProblem, x: Float[Array, " d"], tau) -> Equilibrium:
    """The equilibrium, NaN where there is none."""
    S, A = problem.mdp.n_states, problem.mdp.n_actions

    def off(problem, x, tau, mu):
        mdp = problem.transitions(x)
        return flow(mdp, planning.soft_optimal(mdp, problem.reward_among(x, mu), tau).pi) - mu

    arrays, rest = eqx.partition((problem, x, tau), eqx.is_array)
    fixed = eqx.combine(jax.lax.stop_gradient(arrays), rest)

    def jacobian(mu):
        return jax.jacfwd(lambda v: off(*fixed, v.reshape(S, A)).ravel())(mu.ravel())

    def size(g):
        return jnp.sum(jnp.abs(g))

    def unfinished(carry):
        _, g, _, k = carry
        return (size(g) > TOLERANCE) & (k < STEPS)

    def newton(carry):
        mu, g, damping, k = carry
        matrix = damping * jnp.eye(S * A) - jacobian(mu)
        tried = mu + linear.dense_solution(matrix, g.ravel(), beside=mu.ravel()).v.reshape(S, A)
        there = off(*fixed, tried)
        better = size(there) < size(g)  # not where a step led to NaN
        mu, g = jnp.where(better, tried, mu), jnp.where(better, there, g)
        return mu, g, jnp.where(better, damping / 8, jnp.maximum(4 * damping, 1e-6)), k + 1

    uniform = planning.soft_policy(jnp.zeros((S, A)) + problem.mdp.mask, 1.0)
    mu = flow(fixed[0].transitions(fixed[1]), uniform)
    mu, g, _, _ = jax.lax.while_loop(unfinished, newton, (mu, off(*fixed, mu), jnp.ones(()), 0))
    residual = size(g)
    # one more Newton step, now differentiated: the derivative of the matrix is multiplied by a residual of zero
    mu, matrix = jax.lax.stop_gradient((mu, -jacobian(mu)))
    mu = mu + linear.dense_solution(matrix, off(problem, x, tau, mu).ravel(), beside=mu.ravel()).v.reshape(S, A)
    return Equilibrium(jnp.where(residual <= REFUSED, mu, jnp.nan), residual)
