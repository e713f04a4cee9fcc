r"""Certainty equivalence: learn the transitions from samples, then descend on the hyper-objective of what was learnt.

$$\hat P(s'|s,a) = \frac{n(s,a,s')}{n(s,a)}, \qquad \hat\rho(s) = \frac{n_0(s)}{n_0}, \qquad
\hat\Phi_\tau(x) = f\big(x, \mathrm{argmax}_\pi \hat J_\tau(x, \pi); \hat P\big)$$

Every sample serves every x: many starts cost no more samples than one. Where x moves the kernel, what is known of that
weighs the counts (`learn.counts`) and is differentiated with the rest.
"""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite import quasi_newton
from bilevel_rl.finite.learn.counts import LIKELY, Counts
from bilevel_rl.finite.learn.followers import check_chains, check_fields
from bilevel_rl.finite.model import planning, sampling
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.quasi_newton import MEMORY, NEVER, TRIALS, QuasiNewtonState
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.loop import starts
from bilevel_rl.schedules import TEMPERATURE


class CertaintyState(State):
    """What was seen, and where each start has come.

    Attributes:
        counts: how often each transition was seen.
        begins: [S] how often an episode began in s; the sum of one over its likelihood where x moves the start.
        V: [S] the follower's value by the model, at x.
        s: [N] where the chains are.
        climbers: one quasi-Newton state a start, stacked.
    """

    counts: Counts
    begins: Float[Array, " S"]
    V: Float[Array, " S"]
    s: Int[Array, " N"]
    climbers: QuasiNewtonState


class CertaintyEquivalence(Solver):
    r"""Model-based: the transitions are counted, the rest is exact on the counts.

    Each iteration walks, then descends. The chains follow the model's own answer to x, except that with probability
    `explore` they take the action tried least often where they are. Then every start makes `descents` quasi-Newton steps on
    $\hat\Phi_\tau$ (see `exact_quasi_newton`). x is the start that is lowest by the model. On a finite MDP that can be
    tabulated it needs the fewest samples by far, and it is of no use beyond. Known are the reward and the upper objective,
    as to every solver, which states are ends, and, where x moves the kernel, the likelihood of a transition under any x.

    In the model, an action never tried leads back to its own state.

    Args:
        tau: temperature of the hyper-objective, in units of reward.
        step_size: of the first trial of a descent without memory.
        explore: share of the steps that take the action tried least often.
        chains: N.
        length: transitions of each chain an iteration.
        descents: quasi-Newton steps of each start an iteration; the first only evaluates, the model being new.
        starts: x0, then the problem's `structured_starts` if it has any, then points drawn as a search draws them.
        memory: C, room for so many distinct transitions, the ones seen most where there are more. Memory is O(C + S A);
            plans cost O(C + S^3), beyond 1,024 states what an iterative solve costs.

    References:
        The plug-in planner for one level: Agarwal, Kakade, Yang 2020 (arXiv 1906.03804), among others; its use for the
        hyper-objective is ours. Cost of an iteration: O(N length A + C log C) for the counts, and `starts` times `descents`
        soft-optimal plans.
    """

    tau: float = TEMPERATURE
    step_size: float = 0.1
    explore: float = 0.5
    chains: int = eqx.field(static=True, default=16)
    length: int = eqx.field(static=True, default=128)
    descents: int = eqx.field(static=True, default=5)
    starts: int = eqx.field(static=True, default=1)
    memory: int = eqx.field(static=True, default=2**17)

    name: ClassVar[str] = "certainty_equivalence"
    references: ClassVar[tuple[str, ...]] = ("agarwal2020model",)

    def check(self, problem: BilevelProblem) -> None:
        check_chains(self.name, self.chains)
        check_fields(
            self.name,
            ("tau", self.tau, self.tau > 0, "it must be above 0"),
            ("step_size", self.step_size, self.step_size > 0, "it must be above 0"),
            ("explore", self.explore, 0 < self.explore <= 1, "it must be above 0 and at most 1"),
            ("length", self.length, self.length >= 1, "it must be at least 1"),
            ("descents", self.descents, self.descents >= 2, "it must be at least 2: the first only evaluates"),
            ("starts", self.starts, self.starts >= 1, "it must be at least 1"),
            ("memory", self.memory, self.memory >= 1, "it must be at least 1"),
        )  # fmt: skip

    def draws(self, problem: BilevelProblem) -> int:
        return 3 * self.chains * self.length

    def init(self, problem: BilevelProblem, x0, key) -> CertaintyState:
        S, A = problem.mdp.n_states, problem.mdp.n_actions
        own, others = jax.random.split(key)
        mdp = problem.transitions(x0)
        s = sampling.start_state(mdp, jax.random.uniform(own, (self.chains,)))
        x = starts.points(problem, self.starts, others, first=x0)
        return CertaintyState(
            x0, jnp.zeros((), int), Counts.empty(S, A, self.memory, problem.moves_transitions),
            jnp.zeros(S).at[s].add(_counted_as(problem, mdp, s)), jnp.zeros(S), s,
            jax.vmap(lambda x: quasi_newton.begin(problem, x, MEMORY))(x),
        )  # fmt: skip

    def step(self, problem: BilevelProblem, state: CertaintyState, k, noise) -> CertaintyState:
        mdp, N = problem.transitions(state.x), self.chains
        u = noise.reshape(self.length, 3, N)
        model = _guess(problem, state.counts, state.begins).transitions(state.x)
        Q = planning.action_value(model, problem.reward(state.x), model.ongoing(state.V))
        pi = planning.soft_policy(Q, self.tau)

        # walk
        def walk(carry, u):
            s, tried = carry
            bold = u[0] < self.explore
            again = jnp.where(bold, u[0] / self.explore, (u[0] - self.explore) / jnp.maximum(1 - self.explore, 1e-12))
            here = tried[s]
            least = (here == jnp.min(here, -1, keepdims=True)).astype(pi.dtype)
            a = sampling.choose(jnp.where(bold[:, None], least, pi[s]), again)
            s_next = sampling.next_state(mdp, s, a, u[1])
            onward, restart = sampling.continue_chain(mdp, s_next, u[2])
            return (onward, tried.at[s, a].add(1.0)), (s, a, s_next, onward, restart)

        (s, _), seen = jax.lax.scan(walk, (state.s, state.counts.tried), u)
        at, a, s_next, onward, restart = (v.ravel() for v in seen)
        likelihood = sampling.transition_probability(mdp, at, a, s_next) if problem.moves_transitions else None
        counts = state.counts.plus(at, a, s_next, likelihood)
        begins = state.begins.at[onward].add(restart * _counted_as(problem, mdp, onward))

        # descend
        guess = _guess(problem, counts, begins)
        climbers = eqx.tree_at(lambda c: c.tau, state.climbers, jnp.full_like(state.climbers.tau, NEVER))
        climbers = eqx.tree_at(lambda c: c.settled, climbers, jnp.zeros_like(climbers.settled))

        def descend(one: QuasiNewtonState) -> QuasiNewtonState:
            step = lambda _, c: quasi_newton.step(guess, c, self.step_size, self.tau, TRIALS)  # noqa: E731
            return jax.lax.fori_loop(0, self.descents, step, one)

        climbers = jax.lax.map(descend, climbers)
        best = jnp.argmin(jnp.where(jnp.isfinite(climbers.f), climbers.f, jnp.inf))
        return CertaintyState(
            climbers.x[best], state.samples + N * self.length, counts, begins, climbers.V[best], s, climbers
        )

    def tracked(self, problem, state, k):
        model = _guess(problem, state.counts, state.begins).transitions(state.x)
        Q = planning.action_value(model, problem.reward(state.x), model.ongoing(state.V))
        return planning.soft_policy(Q, self.tau)


def _guess(problem: BilevelProblem, counts: Counts, begins: Float[Array, " S"]) -> BilevelProblem:
    """The problem with what was counted in the place of its MDP."""
    return eqx.tree_at(lambda p: p.mdp, problem, counts.model(problem.mdp, begins))


def _counted_as(problem: BilevelProblem, mdp: FiniteMDP, s: Int[Array, " N"]) -> Float[Array, " N"] | float:
    """By how much each first state counts: once, or by one over its likelihood where x moves the start."""
    return 1 / jnp.maximum(mdp.start[s], LIKELY) if problem.moves_start else 1.0
