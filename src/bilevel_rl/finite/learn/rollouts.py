r"""Trajectories of a follower and what the trajectory-based hyper-gradients make of them.

For a soft-optimal follower $\partial_x \log\pi = (\partial_x Q - \partial_x V)/\tau$ and
$\partial_x Q(s_t,a_t) = E\big[\sum_{k \ge t} \gamma^{k-t} \partial_x r_x(s_k,a_k)\big]$. An estimator that weighs
$\partial_x Q(s_t,a_t)$ by $c_t$ therefore weighs $\partial_x r_x(s_k,a_k)$ by a trace,

$$\sum_t c_t \sum_{k \ge t} \gamma^{k-t} \partial_x r_x(s_k,a_k) = \partial_x \sum_k e_k\, r_x(s_k,a_k), \qquad
e_k = \gamma e_{k-1} + c_k,$$

so that one derivative of the rewards seen does for all dimensions of x at once (ours: the same sum, exchanged).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.finite.learn.followers import check_fields
from bilevel_rl.finite.model import planning, sampling, small
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver
from bilevel_rl.loop import leader
from bilevel_rl.loop.noise import Draws
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, Sequences, TimeScales

Follows = Literal["q_learning", "soft_vi"]


class Rollouts(NamedTuple):
    """N trajectories of T transitions, one episode each: s, a, s_next [N, T] each."""

    s: Int[Array, "N T"]
    a: Int[Array, "N T"]
    s_next: Int[Array, "N T"]


class Streams(NamedTuple):
    """N trajectories of T transitions, several episodes each: s, a, s_next and t, the step of its episode, [N, T] each."""

    s: Int[Array, "N T"]
    a: Int[Array, "N T"]
    s_next: Int[Array, "N T"]
    t: Int[Array, "N T"]


Seen = Rollouts | Streams


def first(seen: Seen) -> Bool[Array, "N T"] | None:
    """Which transitions begin an episode; None where column 0 does and no other."""
    return seen.t == 0 if isinstance(seen, Streams) else None


def last(seen: Seen) -> Bool[Array, "N T"] | None:
    """Which transitions are followed by one of another episode; None where none is."""
    if not isinstance(seen, Streams):
        return None
    return jnp.concatenate([seen.t[:, 1:] == 0, jnp.zeros((seen.t.shape[0], 1), bool)], axis=1)


def draws(trajectories: int, horizon: int, episode: int | None = None) -> dict[str, tuple[int, ...]]:
    """Uniform numbers that `draw` consumes: of each trajectory's start, and of each step (with restarts, three)."""
    return {"start": (trajectories,), "steps": (horizon, 2 if episode is None else 3, trajectories)}


def draw(
    mdp: FiniteMDP, pi: Float[Array, "S A"], noise: Mapping[str, Array], episode: int | None = None
) -> Seen:
    """Trajectories from `start` under `pi`: as many and as long as the noise says.

    Args:
        noise: `draws(trajectories, horizon, episode)` filled with uniform numbers.
        episode: None for one episode a trajectory; else each is a stream of episodes, a new one beginning where one has
            ended or has lasted that many transitions.
    """

    def step(s, z):
        a = sampling.choose(small.rows(pi, s), z[0])
        s_next = sampling.next_state(mdp, s, a, z[1])
        return s_next, (s, a, s_next)

    def stream(now, z):
        s, t = now
        s_next, here = step(s, z)
        over = t + 1 >= episode
        if mdp.ends is not None:
            over = over | small.rows(mdp.ends, s_next)
        return (jnp.where(over, sampling.start_state(mdp, z[2]), s_next), jnp.where(over, 0, t + 1)), (
            *here,
            t,
        )

    s, steps = sampling.start_state(mdp, noise["start"]), noise["steps"]
    if episode is None:
        return Rollouts(*(v.T for v in jax.lax.scan(step, s, steps)[1]))
    return Streams(*(v.T for v in jax.lax.scan(stream, (s, jnp.zeros(s.shape, jnp.int32)), steps)[1]))


def returns_to_go(
    values: Float[Array, "N T"], gamma, over: Bool[Array, "N T"] | None = None
) -> Float[Array, "N T"]:
    r"""$\sum_{k \ge t} \gamma^{k-t} v_k$, cut at the horizon and where an episode is over."""

    def back(ahead, v):
        v, ends = v
        now = v + gamma * (ahead if ends is None else jnp.where(ends, 0.0, ahead))
        return now, now

    zero = jnp.zeros(values.shape[0], values.dtype)
    return jax.lax.scan(back, zero, (values.T, None if over is None else over.T), reverse=True)[1].T


def traces(
    values: Float[Array, "N T"], gamma, fresh: Bool[Array, "N T"] | None = None
) -> Float[Array, "N T"]:
    r"""$e_k = \gamma e_{k-1} + c_k$, anew in each episode: the adjoint of `returns_to_go`."""

    def on(e, c):
        c, begins = c
        e = gamma * (e if begins is None else jnp.where(begins, 0.0, e)) + c
        return e, e

    zero = jnp.zeros(values.shape[0], values.dtype)
    return jax.lax.scan(on, zero, (values.T, None if fresh is None else fresh.T))[1].T


def following(values: Float[Array, "N T"], seen: Seen) -> Float[Array, "N T"]:
    """The value one step later in the same episode; 0 where there is none."""
    ahead = jnp.concatenate([values[:, 1:], jnp.zeros((values.shape[0], 1))], axis=1)
    over = last(seen)
    return ahead if over is None else jnp.where(over, 0.0, ahead)


def discounts(seen: Seen, gamma) -> Float[Array, "N T"]:
    r"""$(1-\gamma)\gamma^t/N$: weighed with it, a sum over the trajectories is a mean over the visitation $d^\pi$.

    N counts the episodes that began; those that the horizon cuts count in full, a bias of the order of their share.
    """
    N, T = seen.s.shape
    if isinstance(seen, Streams):
        return (1 - gamma) * gamma**seen.t / jnp.sum(seen.t == 0)
    return jnp.broadcast_to((1 - gamma) * gamma ** jnp.arange(T) / N, (N, T))


# -- hyper-gradients ------------------------------------------------------------------------------------------------


def direct(
    problem: BilevelProblem,
    x: Float[Array, " d"],
    seen: Seen,
    V_u: Float[Array, "N T"],
    V_0: Float[Array, "N T"],
) -> Float[Array, " d"]:
    r"""$\nabla_x f$ at a fixed policy, for $f = c(x) - E_{d,\pi}[u_x]$.

    $$\nabla_x c(x) - \sum_{n,t} \tfrac{(1-\gamma)\gamma^t}{N} \big[\nabla_x u_x + \gamma \nabla_x \log P_x\, V_U(s')\big]
    - \tfrac{1-\gamma}{N} \sum_n \nabla_x \log\rho_x\, V_U(s_0)$$

    Args:
        V_u: [N, T] leader's value of each successor; needed where x moves the transitions only.
        V_0: [N, T] of each state, read where an episode begins; needed where x moves the start only.
    """
    gamma = problem.mdp.discount
    s, a, s_next = (v.ravel() for v in seen[:3])
    weight = discounts(seen, gamma).ravel()

    def surrogate(x):
        total = problem.objective.linear_value(x, s, a, lambda u: jnp.sum(weight * u))
        mdp = problem.transitions(x)
        if _moves(problem):
            total = total - gamma * jnp.sum(weight * _score(mdp, s, a, s_next) * V_u.ravel())
        if problem.moves_start:
            total = total - (1 - gamma) * first_mean(mdp.start)
        return total

    def first_mean(start):  # of rho / stop_gradient(rho) V_0
        begins = first(seen)
        if begins is None:
            rho = start[seen.s[:, 0]]
            return jnp.mean(rho / jax.lax.stop_gradient(rho) * V_0[:, 0])
        rho = jnp.where(begins, start[seen.s], 1.0)
        return jnp.sum(jnp.where(begins, rho / jax.lax.stop_gradient(rho) * V_0, 0.0)) / jnp.sum(begins)

    return jax.grad(surrogate)(x)


def response(
    problem: BilevelProblem, x: Float[Array, " d"], seen: Seen, c: Float[Array, "N T"], V_l: Float[Array, " S"],
    centred: bool = False,
) -> Float[Array, " d"]:  # fmt: skip
    r"""What the follower's answer to x adds, from its own trajectories.

    $$-\sum_{n,t} c_t\, \widehat{\partial_x Q}(s_t,a_t), \qquad
    \widehat{\partial_x Q}(s_t,a_t) = \sum_{k \ge t} \gamma^{k-t} \big[\nabla_x r_x + \gamma \nabla_x \log P_x\, V(s')\big]$$

    Args:
        c: [N, T] weight of $\partial_x Q(s_t,a_t)$; $1/\tau$, discount and mean are part of it.
        V_l: [S] value of the follower, entropy-regularised; needed where x moves the transitions only.
        centred: whether V(s) is taken from V(s'), which $\nabla_x \log P_x$ weighs: the same mean, less variance.
    """
    gamma = problem.mdp.discount
    s, a, s_next = (v.ravel() for v in seen[:3])
    e = traces(c, gamma, first(seen)).ravel()
    ahead = V_l[s_next] - V_l[s] if centred else V_l[s_next]

    def surrogate(x):
        total = jnp.sum(e * problem.reward_at(x, s, a))
        if _moves(problem):
            total = total + gamma * jnp.sum(e * _score(problem.transitions(x), s, a, s_next) * ahead)
        return -total

    return jax.grad(surrogate)(x)


def _moves(problem: BilevelProblem) -> bool:
    return problem.moves_transitions or (problem.moves_start and problem.mdp.episodic)


def _score(mdp: FiniteMDP, s, a, s_next) -> Float[Array, " M"]:
    """One, with the gradient of log P."""
    p = sampling.transition_probability(mdp, s, a, s_next)
    return p / jax.lax.stop_gradient(p)


def clipped(g: Float[Array, " d"], bound) -> Float[Array, " d"]:
    """g, shortened to length `bound` where it is longer."""
    norm = jnp.linalg.norm(g)
    return g * jnp.where(norm > bound, bound / jnp.where(norm > 0, norm, 1.0), 1.0)


# -- followers and critics that learn from the trajectories ---------------------------------------------------------


def soft_q_learning(
    mdp: FiniteMDP, Q: Float[Array, "S A"], s: Int[Array, " M"], a: Int[Array, " M"], s_next: Int[Array, " M"],
    r: Float[Array, " M"], tau, beta, passes: int,
) -> Float[Array, "S A"]:  # fmt: skip
    r"""Passes over M transitions: $Q(s,a) \leftarrow Q + \beta\,(\overline{r + \gamma V(s')} - Q)$, the mean of each pair.

    $V = \tau\log\sum_a e^{Q/\tau}$. Off policy: the transitions may come from any policy.
    """
    S, A = Q.shape

    def once(Q, _):
        if S <= s.shape[0]:
            V = small.rows(mdp.ongoing(planning.soft_value(Q, tau)), s_next)
        else:
            V = mdp.ongoing(planning.soft_value(small.rows(Q, s_next), tau), s_next)
        return _towards(Q, s * A + a, r + mdp.discount * V, beta), None

    return jax.lax.scan(once, Q, None, length=passes)[0]


def learn_follower(
    problem: BilevelProblem, mdp: FiniteMDP, x: Float[Array, " d"], Q: Float[Array, "S A"], seen: Seen,
    v: Float[Array, "..."], tau, beta, passes: int,
) -> tuple[Float[Array, "S A"], int]:  # fmt: skip
    """Soft Q-learning on the trajectories, and on one uniformly chosen action beside each of their transitions.

    Args:
        v: [2, N T] uniform numbers for the actions beside; empty: the trajectories alone.

    Returns:
        Q, and the transitions that were drawn beside.
    """
    batch = tuple(part.ravel() for part in seen[:3])
    if v.size:
        s, a, _ = batch
        other = jnp.minimum((v[0] * Q.shape[1]).astype(a.dtype), Q.shape[1] - 1)
        beside = (s, other, sampling.next_state(mdp, s, other, v[1]))
        batch = tuple(map(jnp.concatenate, zip(batch, beside, strict=True)))
    r = problem.reward_at(x, *batch[:2])
    return soft_q_learning(mdp, Q, *batch, r, tau, beta, passes), v.size // 2


def sarsa(
    Q: Float[Array, "S A"],
    pi: Float[Array, "S A"],
    seen: Seen,
    r: Float[Array, "N T"],
    gamma,
    beta,
    passes: int,
) -> Float[Array, "S A"]:
    r"""Passes over the trajectories: $Q(s,a) \leftarrow Q + \beta\,(\overline{r + \gamma Q(s',a')} - Q)$.

    $a'$ is the trajectory's next action; after an episode's last transition, whose action was not drawn, its mean under pi.
    """
    A = Q.shape[1]
    pair = seen.s * A + seen.a
    final, over = seen.s_next[:, -1], last(seen)

    def once(Q, _):
        end = small.total(small.rows(pi, final) * small.rows(Q, final))
        ahead = jnp.concatenate([small.rows(Q.ravel(), pair[:, 1:]), end[:, None]], axis=1)
        if over is not None:
            ahead = jnp.where(over, small.rows(small.total(pi * Q), seen.s_next), ahead)
        return _towards(Q, pair.ravel(), (r + gamma * ahead).ravel(), beta), None

    return jax.lax.scan(once, Q, None, length=passes)[0]


def _towards(
    Q: Float[Array, "S A"], pair: Int[Array, " M"], target: Float[Array, " M"], beta
) -> Float[Array, "S A"]:
    flat = Q.ravel()
    error = small.after(target - small.rows(flat, pair), flat[:1])
    return small.add_rows(flat, pair, beta * sampling.visit_mean(pair, flat.shape[0], error)).reshape(Q.shape)


def soft_vi(problem: BilevelProblem, x, Q: Float[Array, "S A"], tau, sweeps: int) -> Float[Array, "S A"]:
    r"""Sweeps $Q \leftarrow r_x + \gamma P\,\tau\log\sum_a e^{Q/\tau}$: a follower that plans with the model."""
    mdp, r = problem.transitions(x), problem.reward(x)
    sweep = lambda Q, _: (planning.action_value(mdp, r, mdp.ongoing(planning.soft_value(Q, tau))), None)  # noqa: E731
    return jax.lax.scan(sweep, Q, None, length=sweeps)[0]


def totals(
    seen: Seen, shape: tuple[int, int], *values: Float[Array, "N T"]
) -> tuple[Float[Array, "S A"], ...]:
    """Sums of values over the visits of each pair."""
    pair = (seen.s * shape[1] + seen.a).ravel()
    stacked = jnp.stack([v.ravel() for v in values], axis=1)
    tables = small.add_rows(jnp.zeros((shape[0] * shape[1], len(values)), stacked.dtype), pair, stacked)
    return tuple(jnp.moveaxis(tables.reshape(*shape, len(values)), -1, 0))


def less_others(c: Float[Array, "N T"], seen: Seen, states: int) -> Float[Array, "N T"]:
    r"""Weights of $\widehat{\partial_x Q}$ that subtract from each visit's the mean over its state's other visits.

    $$\sum_t c_t\, \big(\hat q_t - \tfrac{1}{n-1} \textstyle\sum_{u \ne t} \hat q_u\big)
    = \sum_t \tfrac{n}{n-1}\, (c_t - \bar c)\, \hat q_t$$

    over the n visits of each state; a state seen once keeps its weight.
    """
    s = seen.s.ravel()
    both = jnp.stack([c.ravel(), jnp.ones(s.shape)], axis=1)
    total, n = small.rows(small.add_rows(jnp.zeros((states, 2)), s, both), s).T
    often = jnp.maximum(n, 2)
    return jnp.where(n > 1, often / (often - 1) * (c.ravel() - total / often), c.ravel()).reshape(c.shape)


def less_state_mean(total: Float[Array, "S A"], count: Float[Array, "S A"]) -> Float[Array, "S A"]:
    r"""$\hat Q(s,a) - \hat V(s)$ from sums over visits and their numbers: means over a pair's and a state's visits.

    0 for pairs that were not seen.
    """
    V = jnp.sum(total, -1, keepdims=True) / jnp.maximum(jnp.sum(count, -1, keepdims=True), 1)
    return jnp.where(count > 0, total / jnp.maximum(count, 1) - V, 0.0)


# -- what the solvers share that learn from trajectories -------------------------------------------------------------


class TrajectorySolver(Solver):
    """The options of a solver that learns from N trajectories an iteration, and the follower's part of a step."""

    scales: TimeScales = TimeScales(
        # ours: near what 8 settings on goal placement chose; benchmarks/quality.py holds the grid
        PowerDecay(0.1, 1 / 3), PowerDecay(1.0), PowerDecay(0.5, 0.3), PowerDecay(1.0), PowerDecay(TEMPERATURE),
    )  # fmt: skip
    clip: float = 1.0
    optimism: float = 0.0
    hold: float = 0.0
    trajectories: int = eqx.field(static=True, default=16)
    horizon: int = eqx.field(static=True, default=100)
    episode: int | None = eqx.field(static=True, default=None)
    follower: Follows = eqx.field(static=True, default="q_learning")
    passes: int = eqx.field(static=True, default=10)
    sweeps: int | None = eqx.field(static=True, default=None)
    baseline: Literal["none", "visits"] = eqx.field(static=True, default="none")
    explore: Literal["extra", "none"] = eqx.field(static=True, default="extra")

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        check_fields(
            self.name,
            ("trajectories", self.trajectories, self.trajectories >= 1, "it must be at least 1"),
            ("horizon", self.horizon, self.horizon >= 2, "it must be at least 2"),
            ("episode", self.episode, self.episode is None or self.episode >= 2, "it must be at least 2, or none"),
            ("passes", self.passes, self.passes >= 1, "it must be at least 1"),
            ("sweeps", self.sweeps, self.sweeps is None or self.sweeps >= 1, "it must be at least 1, or none"),
            ("baseline", self.baseline, self.baseline in ("none", "visits"), "it must be 'none' or 'visits'"),
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
            leader.held(self.hold),
            ("follower", self.follower, self.follower in ("q_learning", "soft_vi"),
             "it must be 'q_learning' or 'soft_vi'"),
            ("explore", self.explore, self.explore in ("extra", "none"), "it must be 'extra' or 'none'"),
        )  # fmt: skip

    def draws(self, problem: BilevelProblem) -> Draws:
        explores = self.follower == "q_learning" and self.explore == "extra"
        return {
            "trajectories": draws(self.trajectories, self.horizon, self.episode),
            "beside": (2, self.trajectories * self.horizon) if explores else 0,
            "upper": problem.objective.draws(problem),
        }

    def play(
        self,
        problem: BilevelProblem,
        mdp: FiniteMDP,
        x: Float[Array, " d"],
        Q: Float[Array, "S A"],
        tau,
        noise,
    ) -> tuple[Float[Array, "S A"], Float[Array, "S A"], Seen]:
        """The follower's table, planned anew where it plans, its policy and its trajectories."""
        if self.follower == "soft_vi":
            Q = soft_vi(problem, x, Q, tau, self.passes if self.sweeps is None else self.sweeps)
        pi = planning.soft_policy(Q, tau)
        return Q, pi, draw(mdp, pi, noise["trajectories"], self.episode)

    def moved(
        self, problem: BilevelProblem, x: Float[Array, " d"], g: Float[Array, " d"], k, zeta
    ) -> Float[Array, " d"]:
        r"""$\Pi_X(x - \zeta g)$ with g clipped; x where it is held."""
        return leader.descend(problem, x, clipped(g, self.clip), k, zeta, self.hold)

    def learn(
        self, problem: BilevelProblem, mdp: FiniteMDP, x: Float[Array, " d"], Q: Float[Array, "S A"], seen: Seen,
        now: Sequences, noise,
    ) -> tuple[Float[Array, "S A"], int]:  # fmt: skip
        """The follower's table after the trajectories, where it learns from them, and the transitions drawn beside."""
        if self.follower == "soft_vi":
            return Q, 0
        return learn_follower(problem, mdp, x, Q, seen, noise["beside"], now.tau, now.beta, self.passes)
