r"""The recommended solver: the penalised follower stored as a difference, so that nothing is divided by a small w.

$$Q^L = Q + \bar w D, \qquad \pi = \mathrm{softmax}(Q/\tau), \qquad \pi^L = \mathrm{softmax}((Q + \bar w D)/\tau), \qquad
\bar w = (1-\gamma) w$$

The paper's estimator divides the difference of two separately learnt followers by w: errors that do not cancel grow as
w falls. Here one stream of transitions teaches Q and D together, and one chain, that of $\pi$, serves both followers.
"""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.learn import rollouts
from bilevel_rl.finite.learn.followers import check_chains, check_fields
from bilevel_rl.finite.learn.replay import Replay
from bilevel_rl.finite.model import planning, sampling, small
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver, State
from bilevel_rl.schedules import PowerDecay, TimeScales

Estimator = Literal["auto", "ratio_critic", "likelihood_ratio", "gradient_critic", "doubly_robust"]
AUTO_DIMENSIONS = 16  # ours: up to this many dimensions of x, `"auto"` affords a gradient critic

# Ours: tuned on the default goal placement at 64,000 transitions; benchmarks/quality.py holds the grid.
SCALES = TimeScales(
    zeta=PowerDecay(0.2, 1 / 2), alpha=PowerDecay(0.05, 3 / 10), beta=PowerDecay(1.0, 3 / 10),
    w=PowerDecay(1.0, 3 / 20), tau=PowerDecay(0.05, 0.0),
)  # fmt: skip
WEIGHT_LIMIT = 10.0  # ours: of a replayed transition whose probability x has raised since


class CoupledState(State):
    r"""Coupled critics, the chains of $\pi$, and what the estimators carry.

    Attributes:
        Q: [S, A] value of the follower, entropy-regularised.
        D: [S, A] what the upper objective adds to it: $Q^L = Q + \bar w D$.
        direct: [S, A] running mean of $g_\theta$; None when f is linear in the visitation.
        visits: [S] running mean of the chains' law; None when f is linear.
        C: [S] ratio critic, $E[(1-\rho_t)/\bar w \mid s_t = s]$.
        G: [S, A, d] gradient critic; None for the estimators that do without.
        s: [N] where the chains are.
        log_ratio: [N] $\log\rho_t$ since each chain's last restart.
        replay: past transitions; None without replay.
        direction: [d] running mean of x's direction.
    """

    Q: Float[Array, "S A"]
    D: Float[Array, "S A"]
    direct: Float[Array, "S A"] | None
    visits: Float[Array, " S"] | None
    C: Float[Array, " S"]
    G: Float[Array, "S A d"] | None
    s: Int[Array, " N"]
    log_ratio: Float[Array, " N"]
    replay: Replay | None
    direction: Float[Array, " d"]


class CoupledPenalty(Solver):
    r"""Coupled penalty method: O(1) variance as $w \to 0$, one chain, critics that learn from replayed transitions.

    Critics, from every transition, new or replayed, those that a sample of f drew included; where x moves the transitions,
    replayed ones weigh $P_x/P_{x'}$, x' being that under which they were drawn:

    $$Q(s,a) \mathrel{+}= \beta\,(r_x + \gamma V(s') - Q), \quad V = \tau \log\textstyle\sum_a e^{Q/\tau}$$
    $$D(s,a) \mathrel{+}= \beta\,(u + \gamma \Delta(s') - D), \quad
    \Delta = (V^L - V)/\bar w = \tfrac{\tau}{\bar w} \log E_\pi e^{\bar w D/\tau}$$

    Hyper-gradient, with $\rho_t$ the product of $\pi^L/\pi$ since the chain's last restart and $c_t = (1-\rho_t)/\bar w$:

    $$\nabla \Phi \approx \nabla c(x) - E_d[\rho\, \nabla u] + E_d[c\, \nabla r]$$

    Args:
        scales: the five sequences; alpha is not used, the actors being softmaxes of the critics.
        momentum: x moves along an average of its direction with this weight on the past.
        hold: iterations for which x stays while the critics catch up.
        clip: bound on $|\log \rho|$ and on the logits' change by a non-linear f.
        bound: on the length of the direction in which x moves; as it stands, none in practice.
        optimism: initial value of Q; above 0 it makes the follower try everything.
        chains: N. One transition along each chain an iteration.
        explore: `"extra"` adds one transition of a uniformly random action from each chain's state, which feeds the
            critics only (it needs a simulator that can be set to a state); `"none"` does not.
        estimator: of c. `"auto"`: `"doubly_robust"`, which keeps the most seeds, or `"ratio_critic"` where x has more
            than 16 dimensions or moves the transitions. `"ratio_critic"`: a table C learnt backwards in time,
            $C(s') \leftarrow C(s)\,q + (1-q)/\bar w$ with $q = \pi^L/\pi(a|s)$ and 0 after a restart; nothing per
            dimension of x, least noise. `"likelihood_ratio"`: the product itself, batch mean subtracted; unbiased given
            Q and D. `"gradient_critic"`: a table G of $\nabla_x Q$ and the performance-difference lemma; d tables.
            `"doubly_robust"`: C and G joined, each the other's control variate: the bias is the product of their errors.
        replay: past transitions that the critics see again each iteration; 0 for none.
        memory: how many past transitions are kept.

    References:
        Ours, on the penalty formulation of arXiv 2601.16399. The ratio critic is backward TD in the spirit of
        discounted COP-TD. Cost O((N + replay) A + d) an iteration; the gradient critic multiplies it by d.
    """

    scales: TimeScales = SCALES
    momentum: float = 0.0
    hold: float = 150.0
    clip: float = 3.0
    bound: float = 1e6
    optimism: float = 0.0
    chains: int = eqx.field(static=True, default=16)
    explore: Literal["extra", "none"] = eqx.field(static=True, default="extra")
    estimator: Estimator = eqx.field(static=True, default="auto")
    replay: int = eqx.field(static=True, default=256)
    memory: int = eqx.field(static=True, default=16384)

    name: ClassVar[str] = "coupled_penalty"
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree",)

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        check_chains(self.name, self.chains)
        estimators = ("auto", "ratio_critic", "likelihood_ratio", "gradient_critic", "doubly_robust")
        critic_of_gradient = self.estimator in ("gradient_critic", "doubly_robust")
        check_fields(
            self.name,
            ("momentum", self.momentum, 0 <= self.momentum < 1, "it must be in [0, 1)"),
            ("hold", self.hold, self.hold >= 0, "it must be at least 0"),
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
            ("bound", self.bound, self.bound > 0, "it must be above 0"),
            ("explore", self.explore, self.explore in ("extra", "none"), "it must be 'extra' or 'none'"),
            ("estimator", self.estimator, self.estimator in estimators, f"it must be one of {estimators}"),
            ("replay", self.replay, self.replay >= 0, "it must be at least 0"),
            ("memory", self.memory, self.memory >= 1, "it must be at least 1"),
            (
                "estimator", self.estimator, not (problem.moves_transitions and critic_of_gradient),
                "where x moves the transitions it must be 'ratio_critic' or 'likelihood_ratio'",
            ),
        )  # fmt: skip

    def estimator_for(self, problem: BilevelProblem) -> Estimator:
        """The estimator used on a problem: `estimator`, with `"auto"` decided."""
        if self.estimator != "auto":
            return self.estimator
        affordable = problem.x0.shape[-1] <= AUTO_DIMENSIONS and not problem.moves_transitions
        return "doubly_robust" if affordable else "ratio_critic"

    def draws(self, problem: BilevelProblem) -> int:
        return 5 * self.chains + self.replay + problem.objective.draws(problem)

    def init(self, problem: BilevelProblem, x0, key) -> CoupledState:
        S, A, d, N = problem.mdp.n_states, problem.mdp.n_actions, x0.shape[0], self.chains
        batch = N if self.explore == "none" else 2 * N
        batch += _seen(problem, x0)
        linear = problem.objective.linear
        return CoupledState(
            x=x0, samples=jnp.zeros((), int),
            Q=jnp.full((S, A), jnp.asarray(self.optimism, float)), D=jnp.zeros((S, A)),
            direct=None if linear else jnp.zeros((S, A)), visits=None if linear else problem.mdp.start,
            C=jnp.zeros(S),
            G=jnp.zeros((S, A, d)) if self.estimator_for(problem) in ("gradient_critic", "doubly_robust") else None,
            s=sampling.start_state(problem.mdp, jax.random.uniform(key, (N,))), log_ratio=jnp.zeros(N),
            replay=Replay.empty(self.memory, batch, problem.moves_transitions) if self.replay else None,
            direction=jnp.zeros(d),
        )  # fmt: skip

    def step(self, problem: BilevelProblem, state: CoupledState, k, noise) -> CoupledState:
        now, gamma, x, N = self.scales.at(k), problem.mdp.discount, state.x, self.chains
        mdp, objective, tau = problem.transitions(x), problem.objective, now.tau
        w = (1 - gamma) * now.w
        S, A = mdp.n_states, mdp.n_actions
        u, u_replay, u_upper = jnp.split(noise, [5 * N, 5 * N + self.replay])
        u = u.reshape(5, N)

        # What a non-linear f adds to the logits of pi^L directly: b = -g_theta / (d pi^L), kept within the clip
        used, b, visits, direct, xi = 0, None, state.visits, state.direct, None
        if not objective.linear:
            b = self._direct(state, w, tau)
            pi_l_all = planning.soft_policy(state.Q + w * (state.D + b), tau)
            xi = objective.sample(x, pi_l_all, problem, u_upper)
            direct = direct + now.beta * (xi.grad_theta - direct)
            visits = visits + now.beta * (jnp.zeros(S).at[state.s].add(1 / N) - visits)
            used = xi.transitions
        advantage = state.D if b is None else state.D + b

        # One transition along each chain of pi, and one of a random action beside it
        s = state.s
        Q_s, advantage_s = small.rows(state.Q, s), small.rows(advantage, s)
        pi, pi_l = planning.soft_policy(Q_s, tau), planning.soft_policy(Q_s + w * advantage_s, tau)
        a = sampling.choose(pi, u[0])
        s_next = sampling.next_state(mdp, s, a, u[1])
        onward, restart = sampling.continue_chain(mdp, s_next, u[2])
        batch = jnp.stack([s, a, s_next])
        if self.explore == "extra":
            other = jnp.minimum((u[3] * A).astype(a.dtype), A - 1)
            beside = jnp.stack([s, other, sampling.next_state(mdp, s, other, u[4])])
            batch = jnp.concatenate([batch, beside], axis=1)
        used = used + batch.shape[1]
        if xi is not None and xi.seen is not None:
            batch = jnp.concatenate([batch, xi.seen.astype(batch.dtype)], axis=1)
        replay, weight = state.replay, None
        if replay is not None:
            replay = replay.extend(mdp, batch)
            past, likelier = replay.draw(mdp, u_replay)
            if likelier is not None:
                weight = jnp.concatenate([jnp.ones(batch.shape[1]), jnp.minimum(likelier, WEIGHT_LIMIT)])
            batch = jnp.concatenate([batch, past], axis=1)

        # how much likelier pi^L makes what was done
        chosen = jnp.arange(A) == a[:, None]
        log_q = jnp.log(small.total(chosen * pi_l) / small.total(chosen * pi))
        log_q = jnp.clip(log_q, -self.clip, self.clip)

        # Q and D, and G when asked, from the same transitions
        bs, ba, bn = batch
        pair = bs * A + ba
        Q_n, advantage_n = small.rows(state.Q, bn), small.rows(advantage, bn)
        V, delta = self._values(Q_n, advantage_n, w, tau)
        if b is not None:  # D holds the part of V^L that J contributes: b acts in its own state only
            delta = delta - jnp.sum(planning.soft_policy(Q_n + w * advantage_n, tau) * b[bn], -1)
        V, delta = mdp.ongoing(V, bn), mdp.ongoing(delta, bn)
        flat_Q, flat_D = state.Q.ravel(), state.D.ravel()
        utility = objective.bonus_at(x, bs, ba) if objective.linear else 0.0
        error_Q = problem.reward_at(x, bs, ba) + gamma * V - small.rows(flat_Q, pair)
        error_D = utility + gamma * delta - small.rows(flat_D, pair)
        both = jnp.stack([error_Q, error_D], axis=1)
        if weight is not None:
            both = both * weight[:, None]
        errors = sampling.visit_mean(pair, S * A, small.after(both, log_q))
        Q = small.add_rows(flat_Q, pair, now.beta * errors[:, 0]).reshape(S, A)
        D = small.add_rows(flat_D, pair, now.beta * errors[:, 1]).reshape(S, A)
        G, error_G = state.G, None
        if G is not None:
            slope = jax.vmap(jax.grad(lambda x, s, a: problem.reward_at(x, s[None], a[None])[0]), (None, 0, 0))
            ahead = jnp.einsum("ba,bad->bd", planning.soft_policy(Q_n, tau), G[bn])
            error_G = slope(x, bs, ba) + gamma * ahead - G[bs, ba]
            G = G.at[bs, ba].add(now.beta * sampling.visit_mean(pair, S * A, error_G))

        # c = (1 - rho)/w before and after a_t
        log_after = jnp.clip(state.log_ratio + log_q, -self.clip, self.clip)
        C = state.C
        estimator = self.estimator_for(problem)
        if estimator in ("ratio_critic", "doubly_robust"):
            before = small.rows(C, s)
            after = before * jnp.exp(log_q) - jnp.expm1(log_q) / w
            target = jnp.where(restart, 0.0, after)
            C = small.add_rows(C, onward, now.beta * sampling.visit_mean(onward, S, target - small.rows(C, onward)))
        else:
            before, after = -jnp.expm1(state.log_ratio) / w, -jnp.expm1(log_after) / w
        c = before if problem.state_reward else after

        # x <- x - zeta (g_x + penalty)
        def lagrangian(x):
            """Its gradient at the present x is the hyper-gradient's estimate."""
            total = 0.0
            if objective.linear:
                total = objective.cost(x) - jnp.mean((1 - w * after) * objective.bonus_at(x, s, a))
            if G is None:
                # E c = 0: its batch mean is a control variate; N/(N - 1) keeps the estimate unbiased
                centred = (c - jnp.mean(c)) * N / (N - 1) if N > 1 else c
                total = total + jnp.mean(centred * problem.reward_at(x, s, a))
            if problem.moves_transitions:
                p = sampling.transition_probability(problem.transitions(x), s, a, s_next)
                # TD errors in place of the values ahead: what depends on (s, a) alone has no part in the gradient
                score = p / jax.lax.stop_gradient(p)
                total = total + jnp.mean(score * (after * error_Q[:N] - (1 - w * after) * error_D[:N]))
            if problem.moves_start:  # (1/w) (V - V^L) where chains start
                _, first = self._values(state.Q, advantage, w, tau)
                if b is not None:
                    first = first - jnp.sum(planning.soft_policy(state.Q + w * advantage, tau) * b, -1)
                total = total - (1 - gamma) * jnp.dot(problem.transitions(x).start, mdp.ongoing(first))
            return total

        D_x = jax.grad(lagrangian)(x)
        if xi is not None:
            D_x = D_x + xi.grad_x
        if G is not None:
            rho = 1 - w * before
            D_x = D_x + jnp.mean(rho[:, None] * jnp.einsum("na,nad->nd", (pi - pi_l) / w, state.G[s]), axis=0)
            if estimator == "doubly_robust":
                D_x = D_x + jnp.mean(after[:, None] * error_G[:N], axis=0)
        D_x = rollouts.clipped(D_x, self.bound)
        direction = self.momentum * state.direction + (1 - self.momentum) * D_x
        moved = problem.project(x - jnp.where(k < self.hold, 0.0, now.zeta) * direction)
        return CoupledState(
            x=moved, samples=state.samples + used, Q=Q, D=D, direct=direct, visits=visits, C=C, G=G, s=onward,
            log_ratio=jnp.where(restart, 0.0, log_after), replay=replay, direction=direction,
        )  # fmt: skip

    def policies(self, problem, state, k):
        now = self.scales.at(k)
        w = (1 - problem.mdp.discount) * now.w
        advantage = state.D if state.direct is None else state.D + self._direct(state, w, now.tau)
        return planning.soft_policy(state.Q, now.tau), planning.soft_policy(state.Q + w * advantage, now.tau)

    def _direct(self, state: CoupledState, w, tau) -> Float[Array, "S A"]:
        r"""$b = -g_\theta/(d\,\pi^L)$ with $|\bar w b| \le$ clip times tau (ours: derived from stationarity in theta)."""
        pi_l = planning.soft_policy(state.Q + w * state.D, tau)
        b = -state.direct / jnp.maximum(state.visits[:, None] * pi_l, 1e-6)
        return jnp.clip(b, -self.clip * tau / w, self.clip * tau / w)

    @staticmethod
    def _values(Q, advantage, w, tau):
        r"""V(s') and $(V^L(s') - V(s'))/\bar w$, the latter without cancellation."""
        pi = planning.soft_policy(Q, tau)
        return planning.soft_value(Q, tau), tau / w * small.log_sum_exp(w * advantage / tau, b=pi)


def _seen(problem: BilevelProblem, x: Float[Array, " d"]) -> int:
    """How many transitions a sample of f lends to the critics."""
    if problem.objective.linear:
        return 0
    pi = jnp.full((problem.mdp.n_states, problem.mdp.n_actions), 1 / problem.mdp.n_actions)
    noise = jnp.zeros(problem.objective.draws(problem))
    xi = jax.eval_shape(lambda x, pi, noise: problem.objective.sample(x, pi, problem, noise), x, pi, noise)
    return 0 if xi.seen is None else xi.seen.shape[1]
