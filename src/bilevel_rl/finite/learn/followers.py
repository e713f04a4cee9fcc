r"""The sampled lower level: a follower's actor and critic, its chains, and the penalty's gradient from its transitions.

The pieces that the sample-based solvers share. Each is one line of the paper's algorithm:

$$V \leftarrow \Pi_B(V + \beta_k G), \qquad \theta \leftarrow \theta + \alpha_k F, \qquad
D = g_x + \frac{\nabla_x r_x(s,a) - \nabla_x r_x(\bar s, \bar a)}{w (1-\gamma)}$$
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite.model import sampling, small
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.loop.settings import check_fields as check_fields  # solvers import it from here as well
from bilevel_rl.schedules import Sequences

Sampling = Literal["chain", "iid"]


class Follower(eqx.Module):
    """One lower level: an actor, its critic, and the chains that feed them.

    Attributes:
        theta: [S, A] logits of the policy.
        V: [S] critic of the entropy-regularised value.
        s: [N] where the chains are.
    """

    theta: Float[Array, "S A"]
    V: Float[Array, " S"]
    s: Int[Array, " N"]


class Transition(eqx.Module):
    """N transitions (s, a, s') of one follower, [N] each, and which s are ends (None where the MDP has none)."""

    s: Int[Array, " N"]
    a: Int[Array, " N"]
    s_next: Int[Array, " N"]
    ended: Bool[Array, " N"] | None = None


def start(mdp: FiniteMDP, u: Float[Array, " N"]) -> Follower:
    """A uniform policy, a critic of zeros, and N chains that start from rho."""
    return Follower(mdp.first_table(), jnp.zeros(mdp.n_states), sampling.start_state(mdp, u))


def draw(
    mdp: FiniteMDP, f: Follower, u: Float[Array, "3 N"], how: Sampling = "chain"
) -> tuple[Transition, Follower, Int[Array, ""]]:
    """One transition of each chain under the follower's policy.

    Args:
        mdp: transitions under the present x.
        f: the follower.
        u: [3, N] uniform numbers: action, next state, restart (and the key of the walks when `how` is `"iid"`).
        how: `"chain"` goes on along restart chains; `"iid"` walks fresh geometric trajectories, every step counted.

    Returns:
        The transitions, the follower with its chains moved on, and the number of transitions used.
    """
    s, walked = f.s, 0
    if how == "iid":
        key = jax.random.key((u[2, 0] * 2**32).astype(jnp.uint32))
        s, walked = sampling.visitation_draws(mdp, f.theta, key, u.shape[1])
    a = sampling.choose(small.softmax(small.rows(f.theta, s)), u[0])
    s_next = sampling.next_state(mdp, s, a, u[1])
    onward, _ = sampling.continue_chain(mdp, s_next, u[2])
    seen = Transition(s, a, s_next, None if mdp.ends is None else small.rows(mdp.ends, s))
    return seen, Follower(f.theta, f.V, onward), jnp.asarray(u.shape[1] + walked)


def value_bound(problem: BilevelProblem, now: Sequences, reward_bound) -> Array:
    r"""$B = (|r|_{max} (1 + w) + \tau \log A)/(1-\gamma)$: no value of either follower exceeds it."""
    gamma = problem.mdp.discount
    return (reward_bound * (1 + now.w) + now.tau * jnp.log(problem.mdp.n_actions)) / (1 - gamma)


def learn(
    f: Follower, seen: Transition, r: Float[Array, " N"], now: Sequences, gamma, bound,
    penalty: Float[Array, "S A"] | None = None,
) -> Follower:  # fmt: skip
    r"""Critic and actor from N transitions; samples of the same state are averaged.

    $$\delta = r + \tau E(\pi, s) + \gamma V(s') - V(s), \quad V(s) \leftarrow \Pi_B(V(s) + \beta\delta), \quad
    \theta(s,\cdot) \leftarrow \theta(s,\cdot) + \alpha\,\big(\delta\,\nabla\log\pi(a|s)
    + \tau \nabla E(\pi, s)\big) - \alpha\, p$$

    $\tau E(\pi, s)$ inside $\delta$ is the same for every action, so it adds nothing to the actor's mean direction; the
    gradient of the present state's entropy is the second term, known exactly. Their sum has the mean of
    $\nabla\log\pi(a|s)\,(r - \tau\log\pi(a|s) + \gamma V(s') - V(s))$, which is $(1-\gamma)\nabla_\theta J_\tau$
    (policy gradient theorem; without the second term a bandit's policy would become deterministic whatever tau).

    Args:
        r: [N] rewards of the transitions, in units of reward.
        bound: B of the critic's ball.
        penalty: [S, A] p, what the upper objective subtracts from the actor's direction; None for nothing.
    """
    pi = small.softmax(small.rows(f.theta, seen.s))  # [N, A]
    here, ahead = small.rows(f.V, seen.s), small.rows(f.V, seen.s_next)
    each = jax.scipy.special.entr(pi)
    E = small.total(each)  # [N]
    if seen.ended is not None:  # no entropy is counted once all is over; the critic then stays at zero there
        each, E = jnp.where(seen.ended[:, None], 0.0, each), jnp.where(seen.ended, 0.0, E)
    share = sampling.visit_mean(seen.s, f.V.shape[0], jnp.ones_like(E))  # 1 / samples of this state
    delta = share * (r + now.tau * E + gamma * ahead - here)
    score = (jnp.arange(pi.shape[1]) == seen.a[:, None]) - pi  # grad log pi(a|s) in the logits of s
    # both tables' updates in one array: computed once, after all reads of the tables
    F = delta[:, None] * score + (share * now.tau)[:, None] * (each - pi * E[:, None])
    update = jnp.concatenate([now.beta * delta[:, None], now.alpha * F], axis=1)
    s, update = small.two(seen.s), small.two(update, 0.0)
    V = small.add_rows(f.V, s, update[:, 0])
    V = small.set_rows(V, seen.s, jnp.clip(small.rows(V, seen.s), -bound, bound))
    theta = small.add_rows(f.theta, s, update[:, 1:])
    if penalty is not None:
        theta = theta - now.alpha * penalty
    return Follower(theta, V, f.s)


class UpperTerms(NamedTuple):
    r"""What the upper objective adds to a step: to the leader-aware follower, and to x.

    Attributes:
        r: [N] rewards of its transitions; $(1-\gamma) w u_x(s,a)$ is part of them where f is linear in the visitation.
        penalty: [S, A] $(1-\gamma) w\, g_\theta$, which its actor descends; None where f is linear.
        grad_x: [d] $g_x$ at fixed policy; None where f is linear, whose $g_x$ is part of `penalty_direction`.
        transitions: how many the objective's own sample took.
    """

    r: Float[Array, " N"]
    penalty: Float[Array, "S A"] | None
    grad_x: Float[Array, " d"] | None
    transitions: Int[Array, ""] | int


def upper_terms(
    problem: BilevelProblem, x: Float[Array, " d"], f: Follower, seen: Transition, w, noise: Any
) -> UpperTerms:
    """The terms of f in a step of the leader-aware follower.

    Args:
        f: the leader-aware follower; `seen` are its transitions.
        w: weight of f.
        noise: uniform numbers for a sample of f, as `problem.objective.draws` asks for them.
    """
    objective, w = problem.objective, (1 - problem.mdp.discount) * w
    r = problem.reward_at(x, seen.s, seen.a)
    if objective.linear:
        return UpperTerms(r + w * objective.bonus_at(x, seen.s, seen.a), None, None, 0)
    xi = objective.sample(x, jax.nn.softmax(f.theta), problem, noise)
    return UpperTerms(r, w * xi.grad_theta, xi.grad_x, xi.transitions)


def learn_value(V: Float[Array, " S"], seen: Transition, r: Float[Array, " N"], beta, gamma) -> Float[Array, " S"]:
    r"""TD(0) without entropy: $V(s) \leftarrow V(s) + \beta (r + \gamma V(s') - V(s))$."""
    delta = r + gamma * small.rows(V, seen.s_next) - small.rows(V, seen.s)
    return small.add_rows(V, seen.s, beta * sampling.visit_mean(seen.s, V.shape[0], delta))


def penalty_direction(
    problem: BilevelProblem, x: Float[Array, " d"], seen: Transition, seen_l: Transition,
    V: Float[Array, " S"], V_l: Float[Array, " S"], w,
) -> Float[Array, " d"]:  # fmt: skip
    r"""D from transitions of both followers, without $g_x$ of objectives that are not linear in the visitation.

    $$D = \nabla_x c(x) - \nabla_x u_x(\bar s, \bar a) + \frac{1}{w(1-\gamma)}
    \big(\nabla_x r_x(s, a) - \nabla_x r_x(\bar s, \bar a)\big)$$

    averaged over the transitions. Where x moves the probabilities, $\gamma \nabla_x \log P_x(s'|s,a) V(s')$ joins
    $\nabla_x r_x(s,a)$ for each follower (ours: the derivative of the Bellman equation), and where it moves the start,
    $(1-\gamma) \nabla_x \sum_s \rho_x(s) V(s)$. A critic of the penalised reward $r_x + (1-\gamma) w u_x$ then also
    brings the kernel's part of $\nabla_x f$.
    """
    gamma = problem.mdp.discount

    def lagrangian(x):
        rewards = jnp.mean(problem.reward_at(x, seen.s, seen.a)) - jnp.mean(problem.reward_at(x, seen_l.s, seen_l.a))
        if problem.moves_transitions:
            moved = kernel_score(problem, x, seen, V) - kernel_score(problem, x, seen_l, V_l)
            rewards = rewards + gamma * moved
        if problem.moves_start:
            rewards = rewards + (1 - gamma) * jnp.dot(problem.transitions(x).start, V - V_l)
        upper = 0.0
        if problem.objective.linear:
            upper = problem.objective.linear_value(x, seen_l.s, seen_l.a)
        return upper + rewards / (w * (1 - gamma))

    return jax.grad(lagrangian)(x)


def kernel_score(problem: BilevelProblem, x: Float[Array, " d"], seen: Transition, V: Float[Array, " S"]) -> Array:
    r"""A function of x whose gradient is the sample mean of $\nabla_x \log P_x(s'|s,a)\, V(s')$."""
    mdp = problem.transitions(x)
    p = sampling.transition_probability(mdp, seen.s, seen.a, seen.s_next)
    return jnp.mean(p / jax.lax.stop_gradient(p) * V[seen.s_next])


# -- checks every sampled solver makes ------------------------------------------------------------------------------


def check_chains(where: str, chains: int) -> None:
    """Raise `InvalidConfig` unless there is at least one chain."""
    if chains < 1:
        raise InvalidConfig(message(f"{where}.chains", chains, "at least one chain is needed", "Set chains >= 1"))
