r"""The pieces of one step of the coupled penalty method, in its order: f's sample, a walk, the critics, x's direction."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.coupled.state import CoupledState, Direct, Errors
from bilevel_rl.finite.estimators import Estimate, Passage
from bilevel_rl.finite.estimators.estimator import mean
from bilevel_rl.finite.learn.coupled_critics import Pair, less, level_error, valued
from bilevel_rl.finite.model import sampling, small
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.loop import leader

SETTLED = 100.0  # ours: iterations after which levels that ends tie down come to rest, as the square of its share in k


def added(D: Float[Array, "S A"], b: Float[Array, "S A"] | None) -> Float[Array, "S A"]:
    """D, and what an objective that is not linear adds to it."""
    return D if b is None else D + b


def upper(problem: BilevelProblem, state: CoupledState, w, now, u, clip, mine=None) -> Direct:
    r"""A sample of f where it is not linear; b = $-g_\theta/(d\,\pi^L)$ acts on the logits of $\pi^L$ directly."""
    if problem.objective.linear:
        return Direct()
    b = logits(state, w, now.tau, clip)
    pi_l = Pair(state.Q, state.D + b, w, now.tau).pi_l
    xi = problem.objective.sample(state.x, pi_l, problem, u)
    mean = state.direct + now.beta * (xi.grad_theta - state.direct)
    one = 1 / state.s.shape[0] if mine is None else mine / jnp.maximum(jnp.sum(mine), 1)
    here = jnp.zeros(problem.mdp.n_states).at[state.s].add(one)
    return Direct(b, xi, mean, state.visits + now.beta * (here - state.visits))


def logits(state: CoupledState, w, tau, clip) -> Float[Array, "S A"]:
    r"""$b = -g_\theta/(d\,\pi^L)$ with $|\bar w b| \le$ clip times tau (ours: derived from stationarity in theta)."""
    pi_l = Pair(state.Q, state.D, w, tau).pi_l
    assert state.direct is not None, "kept where f is not linear"
    assert state.visits is not None, "kept where f is not linear"
    b = -state.direct / jnp.maximum(state.visits[:, None] * pi_l, 1e-6)
    return jnp.clip(b, -clip * tau / w, clip * tau / w)


def walk(mdp: FiniteMDP, s: Int[Array, " N"], pair: Pair, u: Float[Array, "3 N"], clip) -> Passage:
    r"""One transition along each chain of $\pi$."""
    here = pair.at(s)
    pi, pi_l = here.pi, here.pi_l
    a = sampling.choose(pi, u[0])
    s_next = sampling.next_state(mdp, s, a, u[1])
    onward, restart = sampling.continue_chain(mdp, s_next, u[2])
    return Passage(s, a, s_next, onward, restart, pi, pi_l, likelier(mdp, s, a, pi, pi_l, clip))


def likelier(
    mdp: FiniteMDP, s: Int[Array, " N"], a: Int[Array, " N"], pi: Float[Array, "N A"], pi_l: Float[Array, "N A"], clip
) -> Float[Array, " N"]:
    r"""$\log \pi^L/\pi(a|s)$, clipped; 0 at an end, where nothing is left to choose."""
    chosen = jnp.arange(pi.shape[1]) == a[:, None]
    log_q = jnp.log(small.total(chosen * pi_l) / small.total(chosen * pi))
    return mdp.ongoing(jnp.clip(log_q, -clip, clip), s)


def errors(problem: BilevelProblem, x, state: CoupledState, pair: Pair, b, batch) -> Errors:
    """Temporal-difference errors of Q and D on a batch."""
    mdp, (s, a, s_next) = problem.transitions(x), batch
    at, ahead = s * mdp.n_actions + a, pair.at(s_next)
    m_Q, m_D = (None, None) if state.levels is None else state.levels
    V, delta = ahead.values(None if b is None else b[s_next])
    V, delta = valued(mdp, V, s_next, m_Q), valued(mdp, delta, s_next, m_D)
    utility = problem.objective.bonus_at(x, s, a) if problem.objective.linear else 0.0
    gamma, flat_Q, flat_D = mdp.discount, state.Q.ravel(), state.D.ravel()
    return Errors(
        less(problem.reward_at(x, s, a), m_Q) + gamma * V - small.rows(flat_Q, at),
        less(utility, m_D) + gamma * delta - small.rows(flat_D, at), ahead.pi,
    )  # fmt: skip


def taught(mdp: FiniteMDP, k, state: CoupledState, batch, errors: Errors, weight, beta, *reads):
    """Q, D and their levels after a batch; samples of the same pair are averaged."""
    S, A = state.Q.shape
    pair = batch[0] * A + batch[1]
    both = jnp.stack([errors.Q, errors.D], axis=1)
    if weight is not None:
        both = both * weight[:, None]
    levels = state.levels
    if levels is not None:
        rate = beta if mdp.ends is None else beta * jnp.minimum(1.0, SETTLED / (k + 1)) ** 2
        levels = levels + rate * level_error(mdp, batch[0], batch[2], both)
    each = sampling.visit_mean(pair, S * A, small.after(both, *reads))
    Q = small.add_rows(state.Q.ravel(), pair, beta * each[:, 0]).reshape(S, A)
    D = small.add_rows(state.D.ravel(), pair, beta * each[:, 1]).reshape(S, A)
    return Q, D, levels


def direction(
    problem: BilevelProblem, x, state: CoupledState, pair: Pair, direct: Direct, seen: Passage, errors: Errors,
    says: Estimate,
) -> Float[Array, " d"]:  # fmt: skip
    """The hyper-gradient's estimate."""

    def lagrangian(x):
        """Its gradient at the present x is what derivatives of the problem contribute."""
        total = 0.0
        if problem.objective.linear:
            total = problem.objective.linear_value(
                x, seen.s, seen.a, lambda u: mean(says.rho * problem.mdp.ongoing(u, seen.s), seen.mine)
            )
        if says.weights is not None:
            r = problem.mdp.ongoing(problem.reward_at(x, seen.s, seen.a), seen.s)
            total = total + mean(says.weights * r, seen.mine)
        if problem.moves_transitions:
            total = total + _kernel_part(problem, x, seen, errors, says)
        if problem.moves_start:
            total = total - _start_part(problem, x, state, pair, direct.b)
        return total

    D_x = jax.grad(lagrangian)(x)
    if direct.xi is not None:
        D_x = D_x + direct.xi.grad_x
    return sum(says.terms, D_x)


def _kernel_part(
    problem: BilevelProblem, x, seen: Passage, errors: Errors, says: Estimate
) -> Float[Array, ""]:
    r"""Its gradient is $E[\nabla\log P_x(s'|s,a)\,(c\,\delta_Q - \rho\,\delta_D)]$, the first where c weighs rewards too."""
    N = seen.s.shape[0]
    p = sampling.transition_probability(problem.sampled(x), seen.s, seen.a, seen.s_next)
    # TD errors in place of the values ahead: what depends on (s, a) alone has no part in the gradient
    score = p / jax.lax.stop_gradient(p)
    follower = 0.0 if says.weights is None else says.after * errors.Q[:N]
    return mean(score * (follower - says.rho * errors.D[:N]), seen.mine)


def _start_part(problem: BilevelProblem, x, state: CoupledState, pair: Pair, b) -> Float[Array, ""]:
    r"""$(V^L - V)/w$ where chains start."""
    mdp = problem.transitions(x)
    _, first = pair.values(b)
    level = None if state.levels is None else state.levels[1]
    return (1 - mdp.discount) * jnp.dot(mdp.start, valued(mdp, first, None, level))


def span(problem: BilevelProblem) -> Float[Array, " d"]:
    """The size of x's set in each coordinate; twice that of x0 and at least 2 where x is free."""
    part = problem.bounded_part()
    return 2 * jnp.maximum(1.0, jnp.abs(problem.x0)) if part is None else part[1] - part[0]


def in_reach(
    problem: BilevelProblem, D: Float[Array, " d"], squares: Float[Array, " d"] | None, k, zeta, reach
) -> tuple[Float[Array, " d"], Float[Array, " d"] | None]:
    """`leader.within_reach` where x has a set."""
    return (D, None) if squares is None else leader.within_reach(D, squares, span(problem), k, zeta, reach)
