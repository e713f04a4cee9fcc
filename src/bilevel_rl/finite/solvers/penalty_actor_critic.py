r"""The paper's algorithm, line by line: two followers, two critics, one loop, no Hessian.

$$V \leftarrow \Pi_B(V + \beta_k G), \quad \theta \leftarrow \theta + \alpha_k F_0, \quad
\theta^L \leftarrow \theta^L + \alpha_k F_w, \quad x \leftarrow \Pi_X(x - \zeta_k D)$$
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite import planning, sampling
from bilevel_rl.finite.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.schedules import TimeScales


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


class PenaltyState(State):
    """Both followers, and the running average of x's direction when momentum is on."""

    follower: Follower
    follower_l: Follower
    direction: Float[Array, " d"]


class Transition(eqx.Module):
    """N transitions (s, a, s') of one follower, [N] each."""

    s: Int[Array, " N"]
    a: Int[Array, " N"]
    s_next: Int[Array, " N"]


class PenaltyActorCritic(Solver):
    r"""Single-loop, first-order penalty actor-critic.

    Each iteration draws one transition of each of N chains of each follower and updates critics, actors and x from
    them. $F$ carries no $1/(1-\gamma)$: $\alpha_k$ is in the scale $(1-\gamma)\nabla_\theta J$. Where f is linear in the
    visitation its gradient in $\theta$ is the policy gradient of the reward $(1-\gamma) w u$, and the penalised critic
    learns the value of $r_x + (1-\gamma) w u$ (method page; ours). $\Pi_B$ clips each entry of the critic at
    $B = (|r|_{max} + \tau \log A)/(1-\gamma)$: the ball of the sup norm, which a single transition touches in one entry (ours).

    Args:
        scales: the five sequences.
        chains: N, transitions a follower and iteration.
        sampling: `"chain"` (restart chains, the algorithm) or `"iid"` (fresh geometric trajectories, the analysis; every
            transition on the way is counted).
        common_noise: both followers' chains share their random numbers.
        momentum: x moves along an average of D with this weight on the past; 0 is the paper's.
        reward_bound: |r|_max of the critic's ball.
        hold: iterations for which x stays while the followers catch up; 0 is the paper's.

    References:
        arXiv 2601.16399, Algorithm 1. Cost O(N A + d) an iteration, whatever S.
    """

    scales: TimeScales = TimeScales.attenuating()
    momentum: float = 0.0
    reward_bound: float = 1.0
    hold: float = 0.0
    chains: int = eqx.field(static=True, default=1)
    sampling: Literal["chain", "iid"] = eqx.field(static=True, default="chain")
    common_noise: bool = eqx.field(static=True, default=False)

    name: ClassVar[str] = "penalty_actor_critic"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        check_chains(self.name, self.chains)
        for field, value, good, allowed in (
            ("momentum", self.momentum, 0 <= self.momentum < 1, "it must be in [0, 1)"),
            ("reward_bound", self.reward_bound, self.reward_bound > 0, "it must be above 0"),
            ("sampling", self.sampling, self.sampling in ("chain", "iid"), "it must be 'chain' or 'iid'"),
            ("hold", self.hold, self.hold >= 0, "it must be at least 0"),
        ):
            if not good:
                raise InvalidConfig(message(f"{self.name}.{field}", value, allowed, f"Change {field}"))

    def draws(self, problem: BilevelProblem) -> int:
        return 6 * self.chains + problem.objective.draws(problem)

    def init(self, problem: BilevelProblem, x0, key) -> PenaltyState:
        S, A = problem.mdp.n_states, problem.mdp.n_actions
        u = jax.random.uniform(key, (2, self.chains))
        followers = [
            Follower(jnp.zeros((S, A)), jnp.zeros(S), sampling.start_state(problem.mdp, u[0 if self.common_noise else i]))
            for i in range(2)
        ]
        return PenaltyState(x0, jnp.zeros((), int), followers[0], followers[1], jnp.zeros_like(x0))

    def step(self, problem: BilevelProblem, state: PenaltyState, k, noise) -> PenaltyState:
        now, gamma, x = self.scales.at(k), problem.mdp.discount, state.x
        mdp, objective = problem.transitions(x), problem.objective
        u = noise[: 6 * self.chains].reshape(2, 3, self.chains)

        # draw (s, a, s') with a ~ pi_theta, and (s_, a_, s_') with a_ ~ pi_theta^L
        seen, follower, used = self._draw(mdp, state.follower, u[0])
        seen_l, follower_l, used_l = self._draw(mdp, state.follower_l, u[0 if self.common_noise else 1])

        r, r_l = problem.reward_at(x, seen.s, seen.a), problem.reward_at(x, seen_l.s, seen_l.a)
        penalty = 0.0
        used = used + used_l
        if objective.linear:
            r_l = r_l + (1 - gamma) * now.w * objective.bonus_at(x, seen_l.s, seen_l.a)
        else:
            xi = objective.sample(x, jax.nn.softmax(follower_l.theta), problem, noise[6 * self.chains :])
            penalty, used = (1 - gamma) * now.w * xi.grad_theta, used + xi.transitions

        # V <- Pi_B(V + beta G);  theta <- theta + alpha F
        bound = (self.reward_bound * (1 + now.w) + now.tau * jnp.log(mdp.n_actions)) / (1 - gamma)
        follower = self._learn(follower, seen, r, now, gamma, bound)
        follower_l = self._learn(follower_l, seen_l, r_l, now, gamma, bound, penalty)

        # x <- x - zeta D,   D = g_x + (grad r(s, a) - grad r(s_, a_)) / (w (1 - gamma))
        def lagrangian(x):
            rewards = jnp.mean(problem.reward_at(x, seen.s, seen.a)) - jnp.mean(problem.reward_at(x, seen_l.s, seen_l.a))
            if problem.moves_transitions:
                rewards = rewards + gamma * (
                    _kernel_score(problem, x, seen, follower.V) - _kernel_score(problem, x, seen_l, follower_l.V)
                )
            upper = objective.cost(x) - jnp.mean(objective.bonus_at(x, seen_l.s, seen_l.a)) if objective.linear else 0.0
            return upper + rewards / (now.w * (1 - gamma))

        D = jax.grad(lagrangian)(x)
        D = D if objective.linear else D + xi.grad_x
        direction = self.momentum * state.direction + (1 - self.momentum) * D
        moved = problem.project(x - jnp.where(k < self.hold, 0.0, now.zeta) * direction)
        return PenaltyState(moved, state.samples + used, follower, follower_l, direction)

    def policies(self, problem, state, k):
        return jax.nn.softmax(state.follower.theta), jax.nn.softmax(state.follower_l.theta)

    def _draw(self, mdp: FiniteMDP, f: Follower, u: Float[Array, "3 N"]) -> tuple[Transition, Follower, Array]:
        s, walked = f.s, 0
        if self.sampling == "iid":
            key = jax.random.key((u[2, 0] * 2**32).astype(jnp.uint32))
            s, walked = sampling.visitation_draws(mdp, f.theta, key, self.chains)
        a = sampling.choose(jax.nn.softmax(f.theta[s]), u[0])
        s_next = sampling.next_state(mdp, s, a, u[1])
        onward, _ = sampling.continue_chain(mdp, s_next, u[2])
        return Transition(s, a, s_next), Follower(f.theta, f.V, onward), jnp.asarray(self.chains + walked)

    @staticmethod
    def _learn(f: Follower, seen: Transition, r, now, gamma, bound, penalty=0.0) -> Follower:
        pi = jax.nn.softmax(f.theta[seen.s])  # [N, A]
        delta = r + now.tau * planning.entropy(pi) + gamma * f.V[seen.s_next] - f.V[seen.s]
        delta = sampling.visit_mean(seen.s, f.V.shape[0], delta)
        V = f.V.at[seen.s].add(now.beta * delta)
        V = V.at[seen.s].set(jnp.clip(V[seen.s], -bound, bound))
        score = jax.nn.one_hot(seen.a, pi.shape[1]) - pi  # grad log pi(a|s) in the logits of s
        theta = f.theta.at[seen.s].add(now.alpha * delta[:, None] * score)
        return Follower(theta - now.alpha * penalty, V, f.s)


def _kernel_score(problem: BilevelProblem, x, seen: Transition, V) -> Array:
    r"""A function of x whose gradient is the sample mean of $\nabla_x \log P_x(s'|s,a)\, V(s')$."""
    mdp = problem.transitions(x)
    p = jnp.sum(mdp.probabilities[seen.s, seen.a] * (mdp.successors[seen.s, seen.a] == seen.s_next[:, None]), -1)
    return jnp.mean(p / jax.lax.stop_gradient(p) * V[seen.s_next])


def check_chains(where: str, chains: int) -> None:
    """Raise unless there is at least one chain."""
    if chains < 1:
        raise InvalidConfig(message(f"{where}.chains", chains, "at least one chain is needed", "Set chains >= 1"))
