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

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite import estimators
from bilevel_rl.finite.coupled import pieces, several_starts
from bilevel_rl.finite.coupled.several_starts import RacingState
from bilevel_rl.finite.coupled.state import CoupledState, Crowd
from bilevel_rl.finite.estimators import Estimator, Lesson, Passage
from bilevel_rl.finite.learn import exploring, rollouts
from bilevel_rl.finite.learn.coupled_critics import Pair
from bilevel_rl.finite.learn.followers import check_chains, check_fields
from bilevel_rl.finite.learn.replay import Replay, remembered, weight_now
from bilevel_rl.finite.mean_field import MeanFieldProblem
from bilevel_rl.finite.model import sampling
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import Solver
from bilevel_rl.loop import leader, starts
from bilevel_rl.loop import noise as numbers
from bilevel_rl.schedules import TEMPERATURE, PowerDecay, TimeScales

EstimatorName = Literal["auto", "ratio_critic", "likelihood_ratio", "gradient_critic", "doubly_robust"]
AUTO_DIMENSIONS = 16  # ours: up to this many dimensions of x, `"auto"` affords a gradient critic

# Ours: tuned on the default goal placement at 64,000 transitions; benchmarks/quality.py holds the grid. w falls faster than
# the paper's 3/20, since nothing is divided by it here: on logit pricing its bias is a fortieth, and no seed is lost.
SCALES = TimeScales(
    zeta=PowerDecay(0.2, 1 / 2), alpha=PowerDecay(0.05, 3 / 10), beta=PowerDecay(1.0, 3 / 10),
    w=PowerDecay(1.0, 1 / 2), tau=PowerDecay(TEMPERATURE, 0.0),
)  # fmt: skip


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
        scales: the five sequences; the actors being softmaxes of the critics, alpha is the rate at which the flow of a
            population is tracked, and unused without one.
        momentum: x moves along an average of its direction with this weight on the past.
        hold: iterations for which x stays while the critics catch up.
        clip: bound on $|\log \rho|$ and on the logits' change by a non-linear f.
        bound: on the length of the direction in which x moves; as it stands, none in practice.
        reach: bound on the root mean square of a step of x, as a share of its set's size over $\sqrt{k+1}$: noise alone
            carries x through less than that share while a run doubles (`loop.leader.within_reach`). Nothing is shortened
            where steps are shorter than that anyway, nor where x has no box.
        optimism: initial value of Q; above 0 it makes the follower try everything.
        chains: N. One transition along each chain an iteration.
        explore: what teaches the critics beside the chains. `"chains"`: as many chains again, under uniformly random
            actions, never put anywhere: a real environment will do. Where episodes end for good they go on until then,
            or for ten times $1/(1-\gamma)$ steps.
            `"ladder"`: the same, but the n-th of N acts at random with probability n/N and else as the follower does.
            `"extra"`: one transition of a uniformly random action from each chain's state, which needs a simulator that can
            be set to a state. `"none"`.
        estimator: of c. `"auto"`: `"doubly_robust"`, which keeps the most seeds, or `"ratio_critic"` where x has more
            than 16 dimensions or moves the transitions. `"ratio_critic"`: a table C learnt backwards in time,
            $C(s') \leftarrow C(s)\,q + (1-q)/\bar w$ with $q = \pi^L/\pi(a|s)$ and 0 after a restart; nothing per
            dimension of x, least noise. `"likelihood_ratio"`: the product itself, batch mean subtracted; unbiased given
            Q and D. `"gradient_critic"`: a table G of $\nabla_x Q$ and the performance-difference lemma; d tables.
            `"doubly_robust"`: C and G joined, each the other's control variate: the bias is the product of their errors.
        replay: past transitions that the critics see again each iteration; 0 for none.
        memory: how many past transitions are kept.
        centre: whether the levels of Q, D, G and the mean of C are taken out and kept apart, so that long horizons are
            no harder than short ones: rewards lose running means $m$ of the errors, $m \mathrel{+}= \beta\,\bar\delta$,
            values are $Q + m_Q/(1-\gamma)$, the end of an episode for good is worth $-m/(1-\gamma)$, and C's targets
            lose their batch mean. Where episodes end for good m soon rests, and G and C are not centred.
        starts: M points from which x begins at once: x0, then the problem's `structured_starts` if it has any, then points
            drawn as a search draws them. Every transition teaches the critics of all; the chains are shared out, and
            starts that fall behind are dropped (`learn.race`). x is the best so far by planning on what all have seen,
            where that can be counted (`coupled.judging`), else that of the start of lowest learnt value. The samples
            are those of one start, the arithmetic M times as much, and the plans.

    References:
        Ours, on the penalty formulation of arXiv 2601.16399. The ratio critic is backward TD in the spirit of
        discounted COP-TD. Centring by errors is that of Naik, Wan, Tomar, Sutton 2024 (arXiv 2405.09999), which subtracts
        the average reward; for D, G and C it is ours. Cost O((N + replay) A + d) an iteration; the gradient critic
        multiplies it by d.
    """

    scales: TimeScales = SCALES
    momentum: float = 0.0
    hold: float = 150.0
    clip: float = 3.0
    bound: float = 1e6
    reach: float = 0.1
    optimism: float = 0.0
    chains: int = eqx.field(static=True, default=16)
    explore: Literal["chains", "ladder", "extra", "none"] = eqx.field(static=True, default="chains")
    estimator: EstimatorName = eqx.field(static=True, default="auto")
    replay: int = eqx.field(static=True, default=256)
    memory: int = eqx.field(static=True, default=16384)
    centre: bool = eqx.field(static=True, default=True)
    starts: int = eqx.field(static=True, default=1)

    name: ClassVar[str] = "coupled_penalty"
    action_sets: ClassVar[bool] = True
    crowds: ClassVar[bool] = True
    ordered: ClassVar[bool] = False  # the paper's order of the sequences is for estimators that divide by w
    references: ClassVar[tuple[str, ...]] = ("zeng2026hessianfree", "naik2024reward")

    def check(self, problem: BilevelProblem) -> None:
        self.scales.check(f"{self.name}.scales")
        check_chains(self.name, self.chains)
        names, ways = ("auto", *estimators.NAMED), tuple(exploring.KINDS)
        check_fields(
            self.name,
            ("momentum", self.momentum, 0 <= self.momentum < 1, "it must be in [0, 1)"),
            leader.held(self.hold),
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
            ("bound", self.bound, self.bound > 0, "it must be above 0"),
            ("reach", self.reach, self.reach > 0, "it must be above 0"),
            ("explore", self.explore, self.explore in ways, f"it must be one of {ways}"),
            ("estimator", self.estimator, self.estimator in names, f"it must be one of {names}"),
            ("replay", self.replay, self.replay >= 0, "it must be at least 0"),
            ("memory", self.memory, self.memory >= 1, "it must be at least 1"),
            ("starts", self.starts, 1 <= self.starts <= self.chains, f"at least one, and a chain each: 1 to {self.chains}"),
        )

        if self.starts > 1 and problem.mean_field:
            raise InvalidConfig(
                message(f"{self.name}.starts", self.starts, f"the population of {problem.name} answers to one x at a time",
                        "Take starts=1, or `search`, whose starts have a population each")
            )  # fmt: skip

    def estimator_for(self, problem: BilevelProblem) -> Estimator:
        """The estimator used on a problem: `estimator`, with `"auto"` decided."""
        affordable = problem.x0.shape[-1] <= AUTO_DIMENSIONS and not problem.moves_transitions
        best = "doubly_robust" if affordable else "ratio_critic"
        kind = estimators.NAMED[best if self.estimator == "auto" else self.estimator]
        return kind(self.clip, self._centred(problem))

    def _centred(self, problem: BilevelProblem) -> bool:
        """Whether estimators are centred: where that is wanted, and no episode ends for good."""
        return self.centre and problem.mdp.ends is None

    @property
    def exploration(self) -> exploring.Exploration:
        """How the critics see what the follower would not do."""
        return exploring.KINDS[self.explore]

    def draws(self, problem: BilevelProblem):
        N = self.chains
        return {
            "chains": (3, N), "exploring": (self.exploration.rows, N), "replay": self.replay,
            "upper": problem.objective.draws(problem),
        } | ({} if self.starts == 1 else {"firsts": N})  # fmt: skip

    def init(self, problem: BilevelProblem, x0, key) -> CoupledState | RacingState:
        if self.starts == 1:
            return self._begun(problem, x0, key, self._memory(problem, x0))
        # the same chains for all, x of each its own
        x = starts.points(problem, self.starts, jax.random.fold_in(key, 2), first=x0)
        each = jax.vmap(lambda x: self._begun(problem, x, key, None))(x)
        return several_starts.begin(problem, x0, each, self._memory(problem, x0), self.chains)

    def _memory(self, problem: BilevelProblem, x0) -> Replay | None:
        """Room for what is replayed."""
        batch = self.chains if self.explore == "none" else 2 * self.chains
        batch += self.starts * _seen(problem, x0)
        return Replay.empty(self.memory, batch, problem.moves_transitions) if self.replay else None

    def _begun(self, problem: BilevelProblem, x0, key, replay: Replay | None) -> CoupledState:
        S, A, N = problem.mdp.n_states, problem.mdp.n_actions, self.chains
        crowd = None
        if isinstance(problem, MeanFieldProblem):
            alike = jnp.ones((S, A)) if problem.mdp.allowed is None else problem.mdp.allowed.astype(float)
            crowd = Crowd(alike / jnp.sum(alike), jnp.zeros((S, A)))
            problem = problem.held(x0, *crowd)
        linear = problem.objective.linear
        other = jax.random.uniform(jax.random.fold_in(key, 1), (N,))
        return CoupledState(
            x=x0, samples=jnp.zeros((), int),
            Q=problem.mdp.first_table(self.optimism), D=jnp.zeros((S, A)),
            levels=jnp.zeros(2) if self.centre else None,
            direct=None if linear else jnp.zeros((S, A)), visits=None if linear else problem.mdp.start,
            estimate=self.estimator_for(problem).init(problem, x0, N),
            s=sampling.start_state(problem.mdp, jax.random.uniform(key, (N,))),
            wanderers=self.exploration.init(problem.mdp, other),
            replay=replay,
            direction=jnp.zeros(x0.shape[0]), crowd=crowd,
            squares=None if problem.box() is None else jnp.zeros(x0.shape[0]),
        )  # fmt: skip

    def step(self, problem: BilevelProblem, state, k, noise) -> CoupledState | RacingState:
        if isinstance(state, RacingState):
            return several_starts.step(self, problem, state, k, noise)
        if state.crowd is not None:  # one follower in a population that is held, for this iteration
            problem = problem.held(state.x, *state.crowd)
        now, x, mdp = self.scales.at(k), state.x, problem.sampled(state.x)
        w, tau = (1 - mdp.discount) * now.w, now.tau
        direct = pieces.upper(problem, state, w, now, noise["upper"], self.clip)
        pair = Pair(state.Q, pieces.added(state.D, direct.b), w, tau)

        # One transition along each chain of pi, what explores beside them, and the past again
        seen = pieces.walk(mdp, state.s, pair, noise["chains"], self.clip)
        policy = lambda s: pair.at(s).pi  # noqa: E731
        explored, wanderers = self.exploration.step(mdp, state.s, state.wanderers, policy, noise["exploring"])
        batch = _joined(seen, explored)
        used = batch.shape[1] + (0 if direct.xi is None else direct.xi.transitions)
        if direct.xi is not None and direct.xi.seen is not None:
            batch = jnp.concatenate([batch, direct.xi.seen.astype(batch.dtype)], axis=1)
        drawn = sampling.transition_probability(mdp, *batch) if problem.moves_transitions else None
        batch, likelihood, replay = remembered(batch, drawn, state.replay, noise["replay"])
        weight = weight_now(mdp, batch, likelihood, used_now=batch.shape[1] - self.replay)

        # Q and D, and what the estimator knows, from the same transitions
        errors = pieces.errors(problem, x, state, pair, direct.b, batch)
        Q, D, levels = pieces.taught(mdp, k, state, batch, errors, weight, now.beta, seen.log_q)
        lesson = Lesson(*batch, errors.pi_next, errors.Q, weight)
        carry, says = self.estimator_for(problem).step(problem, x, state.estimate, seen, lesson, w, now.beta)
        crowd = None if state.crowd is None else state.crowd.after(seen, says.after, now.alpha)

        # x <- x - zeta (g_x + penalty)
        D_x = pieces.direction(problem, x, state, pair, direct, seen, errors, says)
        D_x, squares = pieces.in_reach(problem, D_x, state.squares, k, now.zeta, self.reach)
        direction = self.momentum * state.direction + (1 - self.momentum) * rollouts.clipped(D_x, self.bound)
        moved = leader.descend(problem, x, direction, k, now.zeta, self.hold)
        return CoupledState(
            x=moved, samples=state.samples + used, Q=Q, D=D, levels=levels, direct=direct.mean, visits=direct.visits,
            estimate=carry, s=seen.onward, wanderers=wanderers, replay=replay, direction=direction, crowd=crowd,
            squares=squares,
        )  # fmt: skip

    def policies(self, problem, state, k):
        if isinstance(state, RacingState):
            state = several_starts.in_front(state)
        now = self.scales.at(k)
        w = (1 - problem.mdp.discount) * now.w
        b = None if state.direct is None else pieces.logits(state, w, now.tau, self.clip)
        pair = Pair(state.Q, pieces.added(state.D, b), w, now.tau)
        return pair.pi, pair.pi_l


def _joined(seen: Passage, explored: Int[Array, "3 M"] | None) -> Int[Array, "3 B"]:
    batch = jnp.stack([seen.s, seen.a, seen.s_next])
    return batch if explored is None else jnp.concatenate([batch, explored], axis=1)


def _seen(problem: BilevelProblem, x: Float[Array, " d"]) -> int:
    """How many transitions a sample of f lends to the critics."""
    if problem.objective.linear or problem.mean_field:
        return 0
    pi = jnp.full((problem.mdp.n_states, problem.mdp.n_actions), 1 / problem.mdp.n_actions)
    drawn = problem.objective.draws(problem)
    u = numbers.fill(drawn, jnp.zeros(numbers.size(drawn)))
    xi = jax.eval_shape(lambda x, pi, u: problem.objective.sample(x, pi, problem, u), x, pi, u)
    return 0 if xi.seen is None else xi.seen.shape[1]
