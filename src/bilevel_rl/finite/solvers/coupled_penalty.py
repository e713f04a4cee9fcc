r"""The recommended solver: the penalised follower stored as a difference, so that nothing is divided by a small w.

$$Q^L = Q + \bar w D, \qquad \pi = \mathrm{softmax}(Q/\tau), \qquad \pi^L = \mathrm{softmax}((Q + \bar w D)/\tau), \qquad
\bar w = (1-\gamma) w$$

The paper's estimator divides the difference of two separately learnt followers by w: errors that do not cancel grow as
w falls. Here one stream of transitions teaches Q and D together, and one chain, that of $\pi$, serves both followers.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.finite import estimators
from bilevel_rl.finite.estimators import Estimate, Estimator, Lesson, Passage
from bilevel_rl.finite.estimators.estimator import mean
from bilevel_rl.finite.learn import exploring, rollouts
from bilevel_rl.finite.learn.coupled_critics import Pair, less, level_error, valued
from bilevel_rl.finite.learn.followers import check_chains, check_fields
from bilevel_rl.finite.learn.race import Race
from bilevel_rl.finite.learn.replay import Replay, remembered, weight_now
from bilevel_rl.finite.mean_field import MeanFieldProblem
from bilevel_rl.finite.model import sampling, small
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem, ObjectiveSample
from bilevel_rl.finite.solver import Solver, State
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
SETTLED = 100.0  # ours: iterations after which levels that ends tie down come to rest, as the square of its share in k
FIRST_JUDGED = 150.0  # ours: iterations after which several starts are judged for the first time, if x is not held longer


class Crowd(NamedTuple):
    r"""What the chains say of the population, where rewards depend on it.

    Attributes:
        mu: [S, A] running mean of its flow.
        kappa: [S, A] running mean of $c\,1(s,a)$: how the flow answers to the leader's wishes, $(\mu - \mu^L)/\bar w$.
    """

    mu: Float[Array, "S A"]
    kappa: Float[Array, "S A"]

    def after(self, seen: Passage, c: Float[Array, " N"], rate) -> Crowd:
        """With what one passage says."""
        N = seen.s.shape[0]
        here = jnp.zeros_like(self.mu).at[seen.s, seen.a]
        return Crowd(
            self.mu + rate * (here.add(1 / N) - self.mu), self.kappa + rate * (here.add(c / N) - self.kappa)
        )


class CoupledState(State):
    r"""Coupled critics, the chains of $\pi$, and what the estimator carries.

    Attributes:
        Q: [S, A] value of the follower, entropy-regularised; centred, less its level over $1-\gamma$.
        D: [S, A] what the upper objective adds to it: $Q^L = Q + \bar w D$; centred alike.
        levels: [2] running means of the errors of Q and D; None where they are not centred.
        direct: [S, A] running mean of $g_\theta$; None when f is linear in the visitation.
        visits: [S] running mean of the chains' law; None when f is linear.
        estimate: what the estimator carries.
        s: [N] where the chains are.
        wanderers: [N] where the exploring chains are; None without them.
        replay: past transitions; None without replay.
        direction: [d] running mean of x's direction.
        crowd: the population's flow; None where one follower is all there is.
    """

    Q: Float[Array, "S A"]
    D: Float[Array, "S A"]
    levels: Float[Array, " 2"] | None
    direct: Float[Array, "S A"] | None
    visits: Float[Array, " S"] | None
    estimate: Any
    s: Int[Array, " N"]
    wanderers: Int[Array, " N"] | None
    replay: Replay | None
    direction: Float[Array, " d"]
    crowd: Crowd | None = None


class RacingState(State):
    """Several starts that share every transition.

    Attributes:
        each: what every start has learnt, stacked; its chains `s` are those of all.
        wanderers, replay: shared, as in `CoupledState`.
        race: which starts go on, and which chain walks for which.
    """

    each: CoupledState
    wanderers: Int[Array, " N"] | None
    replay: Replay | None
    race: Race


class Direct(NamedTuple):
    r"""What an objective that is not linear in the visitation adds at one step.

    Attributes:
        b: [S, A] what it adds to the logits of $\pi^L$ over $\bar w/\tau$; None where f is linear, as is the rest.
        xi: the sample of f.
        mean: [S, A] running mean of $g_\theta$.
        visits: [S] running mean of the chains' law.
    """

    b: Float[Array, "S A"] | None = None
    xi: ObjectiveSample | None = None
    mean: Float[Array, "S A"] | None = None
    visits: Float[Array, " S"] | None = None


class Stream(NamedTuple):
    """What all starts see in one iteration.

    Attributes:
        moves: [3, N] the transition along each chain; onward, restart: as in `Passage`.
        pi, pi_l: [M, N, A] every start's policies in the chains' states.
        batch: [3, B] all transitions, replayed ones last; drawn: [B] how likely each was, None where x does not matter.
        used: how many of them are new.
        wanderers, replay: what goes on.
    """

    moves: Int[Array, "3 N"]
    onward: Int[Array, " N"]
    restart: Bool[Array, " N"]
    pi: Float[Array, "M N A"]
    pi_l: Float[Array, "M N A"]
    batch: Int[Array, "3 B"]
    drawn: Float[Array, " B"] | None
    used: Int[Array, ""] | int
    wanderers: Int[Array, " N"] | None
    replay: Replay | None


class Errors(NamedTuple):
    """Temporal-difference errors of Q and D on a batch of B transitions, and pi in their next states [B, A]."""

    Q: Float[Array, " B"]
    D: Float[Array, " B"]
    pi_next: Float[Array, "B A"]


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
            starts that fall behind are dropped (`learn.race`). x is that of the lowest learnt value. The samples are
            those of one start, the arithmetic M times as much.

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
        wanderers = each.wanderers if each.wanderers is None else each.wanderers[0]
        begun = each.s[0] if wanderers is None else jnp.concatenate([each.s[0], wanderers])
        each = eqx.tree_at(lambda e: e.wanderers, each, None, is_leaf=lambda leaf: leaf is None)
        race = Race.begin(self.starts, self.chains, begun)
        return RacingState(x0, jnp.zeros((), int), each, wanderers, self._memory(problem, x0), race)

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
        )  # fmt: skip

    def step(self, problem: BilevelProblem, state, k, noise) -> CoupledState | RacingState:
        if isinstance(state, RacingState):
            return self._raced(problem, state, k, noise)
        if state.crowd is not None:  # one follower in a population that is held, for this iteration
            problem = problem.held(state.x, *state.crowd)
        now, x, mdp = self.scales.at(k), state.x, problem.sampled(state.x)
        w, tau = (1 - mdp.discount) * now.w, now.tau
        direct = self._upper(problem, state, w, now, noise["upper"])
        pair = Pair(state.Q, _added(state.D, direct.b), w, tau)

        # One transition along each chain of pi, what explores beside them, and the past again
        seen = self._walk(mdp, state.s, pair, noise["chains"])
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
        errors = self._errors(problem, x, state, pair, direct.b, batch)
        Q, D, levels = self._taught(mdp, k, state, batch, errors, weight, now.beta, seen.log_q)
        lesson = Lesson(*batch, errors.pi_next, errors.Q, weight)
        carry, says = self.estimator_for(problem).step(problem, x, state.estimate, seen, lesson, w, now.beta)
        crowd = None if state.crowd is None else state.crowd.after(seen, says.after, now.alpha)

        # x <- x - zeta (g_x + penalty)
        D_x = self._direction(problem, x, state, pair, direct, seen, errors, says)
        direction = self.momentum * state.direction + (1 - self.momentum) * rollouts.clipped(D_x, self.bound)
        moved = leader.descend(problem, x, direction, k, now.zeta, self.hold)
        return CoupledState(
            x=moved, samples=state.samples + used, Q=Q, D=D, levels=levels, direct=direct.mean, visits=direct.visits,
            estimate=carry, s=seen.onward, wanderers=wanderers, replay=replay, direction=direction, crowd=crowd,
        )  # fmt: skip

    def policies(self, problem, state, k):
        if isinstance(state, RacingState):
            state = jax.tree.map(lambda v: v[state.race.best], state.each)
        now = self.scales.at(k)
        w = (1 - problem.mdp.discount) * now.w
        b = None if state.direct is None else self._logits(state, w, now.tau)
        pair = Pair(state.Q, _added(state.D, b), w, now.tau)
        return pair.pi, pair.pi_l

    def _raced(self, problem: BilevelProblem, state: RacingState, k, noise) -> RacingState:
        """One iteration of several starts: that of one, but for every start, on one stream of transitions."""
        now, race, each = self.scales.at(k), state.race, state.each
        w, tau = (1 - problem.mdp.discount) * now.w, now.tau

        # A sample of f for each start that goes on; what was dropped repeats the best one's
        upper = lambda one, mine: self._upper(problem, one, w, now, noise["upper"], mine)  # noqa: E731
        direct = jax.vmap(upper)(each, race.mine)
        source = jnp.where(race.alive, jnp.arange(self.starts), race.best)
        direct = direct._replace(xi=jax.tree.map(lambda v: v[source], direct.xi))
        pair = jax.vmap(lambda one, b: Pair(one.Q, _added(one.D, b), w, tau))(each, direct.b)
        stream = self._stream(problem, state, pair, direct.xi, source, noise)
        (s, a, s_next), firsts = stream.moves, race.some_firsts(noise["firsts"])

        # Every start learns from all of it, and moves by what its own chains say
        def learn(one: CoupledState, pair: Pair, direct: Direct, pi, pi_l, mine, share):
            x, mdp = one.x, problem.sampled(one.x)
            # other starts' chains may do what this one never would
            log_q = jnp.where(mine, self._likelier(mdp, s, a, pi, pi_l), 0.0)
            seen = Passage(s, a, s_next, stream.onward, stream.restart, pi, pi_l, log_q, mine)
            weight = weight_now(mdp, stream.batch, stream.drawn)
            errors = self._errors(problem, x, one, pair, direct.b, stream.batch)
            Q, D, levels = self._taught(mdp, k, one, stream.batch, errors, weight, now.beta, seen.log_q)
            lesson = Lesson(*stream.batch, errors.pi_next, errors.Q, weight)
            carry, says = self.estimator_for(problem).step(problem, x, one.estimate, seen, lesson, w, now.beta)
            D_x = share * self._direction(problem, x, one, pair, direct, seen, errors, says)
            direction = self.momentum * one.direction + (1 - self.momentum) * rollouts.clipped(D_x, self.bound)
            moved = leader.descend(problem, x, direction, k, now.zeta, self.hold)
            f = self._learnt_value(problem, one, mdp, pair, direct, firsts)
            off = self._off(problem, one, mdp, pair, seen)
            return CoupledState(
                x=moved, samples=one.samples, Q=Q, D=D, levels=levels, direct=direct.mean, visits=direct.visits,
                estimate=carry, s=stream.onward, wanderers=None, replay=None, direction=direction,
            ), (f, off)  # fmt: skip

        each, (f, off) = jax.vmap(learn)(each, pair, direct, stream.pi, stream.pi_l, race.mine, race.share)
        race = race.heard(f, k, off).judged(each.x, _span(problem), k, jnp.maximum(self.hold, FIRST_JUDGED))
        race = race.dealt(stream.restart, stream.onward)
        best, used = each.x[race.best], state.samples + stream.used
        return RacingState(best, used, each, stream.wanderers, stream.replay, race)

    def _stream(self, problem: BilevelProblem, state: RacingState, pair: Pair, xi, source, noise) -> Stream:
        """One transition along each chain, as its owner would go, what explores beside them, and the past again."""
        race, X, s, N = state.race, state.each.x, state.each.s[0], self.chains

        def owners(v: Shaped[Array, "M N ..."]) -> Shaped[Array, "N ..."]:
            return v[race.owner, jnp.arange(N)]

        walks = jax.vmap(lambda x, pair: self._walk(problem.sampled(x), s, pair, noise["chains"]))(X, pair)
        a, s_next, onward, restart = (owners(v) for v in (walks.a, walks.s_next, walks.onward, walks.restart))
        best = jax.tree.map(lambda v: v[race.best] if v.ndim else v, pair)

        def explore(x):
            policy = lambda s: best.at(s).pi  # noqa: E731
            return self.exploration.step(problem.sampled(x), s, state.wanderers, policy, noise["exploring"])

        if problem.moves_transitions or problem.moves_start:  # under the owner's kernel, too
            explored, wanderers = jax.vmap(explore)(X)
            explored = None if explored is None else owners(jnp.moveaxis(explored, 1, 2)).T
            wanderers = None if wanderers is None else owners(wanderers)
        else:
            explored, wanderers = explore(X[0])
        batch = jnp.stack([s, a, s_next])
        batch = batch if explored is None else jnp.concatenate([batch, explored.astype(batch.dtype)], axis=1)
        used = batch.shape[1]
        whose = jnp.tile(race.owner, used // N)
        if xi is not None:
            used = used + jnp.sum(jnp.where(race.alive, xi.transitions, 0))
            if xi.seen is not None:
                rows = jnp.moveaxis(xi.seen, 1, 0).reshape(3, -1).astype(batch.dtype)
                batch = jnp.concatenate([batch, rows], axis=1)
                whose = jnp.concatenate([whose, jnp.repeat(source, xi.seen.shape[2])])
        drawn = None
        if problem.moves_transitions:
            under = jax.vmap(lambda x: sampling.transition_probability(problem.sampled(x), *batch))(X)
            drawn = under[whose, jnp.arange(batch.shape[1])]
        batch, drawn, replay = remembered(batch, drawn, state.replay, noise["replay"])
        moves = jnp.stack([s, a, s_next])
        return Stream(moves, onward, restart, walks.pi, walks.pi_l, batch, drawn, used, wanderers, replay)

    def _learnt_value(self, problem: BilevelProblem, one: CoupledState, mdp, pair: Pair, direct: Direct, firsts):
        r"""f of a start: a sample where it is not linear, else $c(x) - (1-\gamma) E_\rho \Delta - m_D$ from its critic."""
        if direct.xi is not None:
            return direct.xi.value
        level = None if one.levels is None else one.levels[1]
        if problem.moves_start:
            mean_first = jnp.dot(mdp.start, valued(mdp, pair.values()[1], None, level))
        else:
            mean_first = jnp.mean(valued(mdp, pair.at(firsts).values()[1], firsts, level))
        level = 0.0 if level is None else level
        return problem.objective.cost(one.x) - (1 - mdp.discount) * mean_first - level

    def _off(self, problem: BilevelProblem, one: CoupledState, mdp, pair: Pair, seen: Passage) -> Float[Array, ""]:
        r"""How far the learnt value is from what a start's own chains gain: $-E_d[u - m_D + \gamma \Delta(s') - \Delta(s)]$.

        Added to it, the sum is f of the policy that walks whatever $\Delta$ is.
        """
        if not problem.objective.linear:
            return jnp.zeros(())
        level = None if one.levels is None else one.levels[1]
        here = valued(mdp, pair.at(seen.s).values()[1], seen.s, level)
        ahead = valued(mdp, pair.at(seen.s_next).values()[1], seen.s_next, level)
        gain = less(problem.objective.bonus_at(one.x, seen.s, seen.a), level) + mdp.discount * ahead - here
        return -mean(mdp.ongoing(gain, seen.s), seen.mine)

    # -- the pieces of a step, in its order ---------------------------------------------------------------------------

    def _upper(self, problem: BilevelProblem, state: CoupledState, w, now, u, mine=None) -> Direct:
        r"""A sample of f where it is not linear; b = $-g_\theta/(d\,\pi^L)$ acts on the logits of $\pi^L$ directly."""
        if problem.objective.linear:
            return Direct()
        b = self._logits(state, w, now.tau)
        pi_l = Pair(state.Q, state.D + b, w, now.tau).pi_l
        xi = problem.objective.sample(state.x, pi_l, problem, u)
        mean = state.direct + now.beta * (xi.grad_theta - state.direct)
        one = 1 / self.chains if mine is None else mine / jnp.maximum(jnp.sum(mine), 1)
        here = jnp.zeros(problem.mdp.n_states).at[state.s].add(one)
        return Direct(b, xi, mean, state.visits + now.beta * (here - state.visits))

    def _logits(self, state: CoupledState, w, tau) -> Float[Array, "S A"]:
        r"""$b = -g_\theta/(d\,\pi^L)$ with $|\bar w b| \le$ clip times tau (ours: derived from stationarity in theta)."""
        pi_l = Pair(state.Q, state.D, w, tau).pi_l
        assert state.direct is not None, "kept where f is not linear"
        assert state.visits is not None, "kept where f is not linear"
        b = -state.direct / jnp.maximum(state.visits[:, None] * pi_l, 1e-6)
        return jnp.clip(b, -self.clip * tau / w, self.clip * tau / w)

    def _walk(self, mdp: FiniteMDP, s: Int[Array, " N"], pair: Pair, u: Float[Array, "3 N"]) -> Passage:
        here = pair.at(s)
        pi, pi_l = here.pi, here.pi_l
        a = sampling.choose(pi, u[0])
        s_next = sampling.next_state(mdp, s, a, u[1])
        onward, restart = sampling.continue_chain(mdp, s_next, u[2])
        return Passage(s, a, s_next, onward, restart, pi, pi_l, self._likelier(mdp, s, a, pi, pi_l))

    def _likelier(
        self, mdp: FiniteMDP, s: Int[Array, " N"], a: Int[Array, " N"], pi: Float[Array, "N A"], pi_l: Float[Array, "N A"]
    ) -> Float[Array, " N"]:
        r"""$\log \pi^L/\pi(a|s)$, clipped; 0 at an end, where nothing is left to choose."""
        chosen = jnp.arange(pi.shape[1]) == a[:, None]
        log_q = jnp.log(small.total(chosen * pi_l) / small.total(chosen * pi))
        return mdp.ongoing(jnp.clip(log_q, -self.clip, self.clip), s)

    def _errors(self, problem: BilevelProblem, x, state: CoupledState, pair: Pair, b, batch) -> Errors:
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

    def _taught(self, mdp: FiniteMDP, k, state: CoupledState, batch, errors: Errors, weight, beta, *reads):
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

    def _direction(
        self, problem, x, state, pair: Pair, direct: Direct, seen: Passage, errors: Errors, says: Estimate
    ):
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


# -- what several pieces share ------------------------------------------------------------------------------------------


def _added(D: Float[Array, "S A"], b: Float[Array, "S A"] | None) -> Float[Array, "S A"]:
    return D if b is None else D + b


def _span(problem: BilevelProblem) -> Float[Array, " d"]:
    """The size of x's set in each coordinate; twice that of x0 and at least 2 where x is free."""
    part = problem.bounded_part()
    return 2 * jnp.maximum(1.0, jnp.abs(problem.x0)) if part is None else part[1] - part[0]


def _joined(seen: Passage, explored: Int[Array, "3 M"] | None) -> Int[Array, "3 B"]:
    batch = jnp.stack([seen.s, seen.a, seen.s_next])
    return batch if explored is None else jnp.concatenate([batch, explored], axis=1)


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


def _seen(problem: BilevelProblem, x: Float[Array, " d"]) -> int:
    """How many transitions a sample of f lends to the critics."""
    if problem.objective.linear or problem.mean_field:
        return 0
    pi = jnp.full((problem.mdp.n_states, problem.mdp.n_actions), 1 / problem.mdp.n_actions)
    drawn = problem.objective.draws(problem)
    u = numbers.fill(drawn, jnp.zeros(numbers.size(drawn)))
    xi = jax.eval_shape(lambda x, pi, u: problem.objective.sample(x, pi, problem, u), x, pi, u)
    return 0 if xi.seen is None else xi.seen.shape[1]
