r"""Several starts of the coupled penalty method at once: one stream of transitions teaches all, the poor ones are dropped.

A step is that of one start, but for every start; what is shared are the chains, what explores beside them, and the past.
Which starts go on, and which chain walks for which, is the race's (`learn.race`).
"""

from __future__ import annotations

from typing import NamedTuple, Protocol, runtime_checkable

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int, Shaped

from bilevel_rl.finite.coupled import judging, pieces
from bilevel_rl.finite.coupled.judging import Judge
from bilevel_rl.finite.coupled.state import CoupledState, Direct
from bilevel_rl.finite.estimators import Estimator, Lesson, Passage
from bilevel_rl.finite.estimators.estimator import mean
from bilevel_rl.finite.learn import exploring, rollouts
from bilevel_rl.finite.learn.coupled_critics import Pair, less, valued
from bilevel_rl.finite.learn.race import Race
from bilevel_rl.finite.learn.replay import Replay, remembered, weight_now
from bilevel_rl.finite.model import sampling
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.finite.solver import State
from bilevel_rl.loop import leader
from bilevel_rl.schedules import TimeScales

FIRST_JUDGED = 150.0  # ours: iterations after which starts are judged for the first time, if x is not held longer


@runtime_checkable
class Racer(Protocol):
    """What a step asks of the method whose starts race: its numbers, as `solvers.coupled_penalty` explains them."""

    @property
    def scales(self) -> TimeScales: ...
    @property
    def momentum(self) -> float: ...
    @property
    def hold(self) -> float: ...
    @property
    def clip(self) -> float: ...
    @property
    def bound(self) -> float: ...
    @property
    def reach(self) -> float: ...
    @property
    def exploration(self) -> exploring.Exploration: ...

    def estimator_for(self, problem: BilevelProblem) -> Estimator:
        """The estimator used on a problem."""
        ...


class RacingState(State):
    """Several starts that share every transition.

    Attributes:
        each: what every start has learnt, stacked; its chains `s` are those of all.
        wanderers, replay: shared, as in `CoupledState`.
        race: which starts go on, and which chain walks for which.
        judge: what they are worth by a model of all transitions; None where their critics tell.
    """

    each: CoupledState
    wanderers: Int[Array, " N"] | None
    replay: Replay | None
    race: Race
    judge: Judge | None


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


def begin(
    problem: BilevelProblem, x0: Float[Array, " d"], each: CoupledState, memory: Replay | None, chains: int
) -> RacingState:
    """All starts at once, before any step.

    Args:
        x0: reported until a start is known to be better.
        each: the first states of all starts, stacked; their chains are the same, and so is what explores.
        memory: what is replayed to all.
        chains: N.
    """
    wanderers = each.wanderers if each.wanderers is None else each.wanderers[0]
    begun = each.s[0] if wanderers is None else jnp.concatenate([each.s[0], wanderers])
    each = eqx.tree_at(lambda e: e.wanderers, each, None, is_leaf=lambda leaf: leaf is None)
    race = Race.begin(each.x.shape[0], chains, begun)
    judge = Judge.begin(problem, x0, each.s[0], begun.shape[0]) if judging.suits(problem) else None
    return RacingState(x0, jnp.zeros((), int), each, wanderers, memory, race, judge)


def in_front(state: RacingState) -> CoupledState:
    """What the start of lowest learnt value has learnt."""
    return jax.tree.map(lambda v: v[state.race.best], state.each)


def step(method: Racer, problem: BilevelProblem, state: RacingState, k, noise) -> RacingState:
    """One iteration of several starts: that of one, but for every start, on one stream of transitions."""
    now, race, each = method.scales.at(k), state.race, state.each
    w, tau = (1 - problem.mdp.discount) * now.w, now.tau

    # A sample of f for each start that goes on; what was dropped repeats the best one's
    upper = lambda one, mine: pieces.upper(problem, one, w, now, noise["upper"], method.clip, mine)  # noqa: E731
    direct = jax.vmap(upper)(each, race.mine)
    source = jnp.where(race.alive, jnp.arange(race.alive.shape[0]), race.best)
    direct = direct._replace(xi=jax.tree.map(lambda v: v[source], direct.xi))
    pair = jax.vmap(lambda one, b: Pair(one.Q, pieces.added(one.D, b), w, tau))(each, direct.b)
    stream = _stream(method, problem, state, pair, direct.xi, source, noise)
    (s, a, s_next), firsts = stream.moves, race.some_firsts(noise["firsts"])

    # Every start learns from all of it, and moves by what its own chains say
    def learn(one: CoupledState, pair: Pair, direct: Direct, pi, pi_l, mine, share):
        x, mdp = one.x, problem.sampled(one.x)
        # other starts' chains may do what this one never would
        log_q = jnp.where(mine, pieces.likelier(mdp, s, a, pi, pi_l, method.clip), 0.0)
        seen = Passage(s, a, s_next, stream.onward, stream.restart, pi, pi_l, log_q, mine)
        weight = weight_now(mdp, stream.batch, stream.drawn)
        errors = pieces.errors(problem, x, one, pair, direct.b, stream.batch)
        Q, D, levels = pieces.taught(mdp, k, one, stream.batch, errors, weight, now.beta, seen.log_q)
        lesson = Lesson(*stream.batch, errors.pi_next, errors.Q, weight)
        carry, says = method.estimator_for(problem).step(problem, x, one.estimate, seen, lesson, w, now.beta)
        D_x = share * pieces.direction(problem, x, one, pair, direct, seen, errors, says)
        D_x, squares = pieces.in_reach(problem, D_x, one.squares, k, now.zeta, method.reach)
        direction = method.momentum * one.direction + (1 - method.momentum) * rollouts.clipped(D_x, method.bound)
        moved = leader.descend(problem, x, direction, k, now.zeta, method.hold)
        f = learnt_value(problem, one, mdp, pair, direct, firsts)
        off = off_by(problem, one, mdp, pair, seen)
        return CoupledState(
            x=moved, samples=one.samples, Q=Q, D=D, levels=levels, direct=direct.mean, visits=direct.visits,
            estimate=carry, s=stream.onward, wanderers=None, replay=None, direction=direction, squares=squares,
        ), (f, off)  # fmt: skip

    each, (f, off) = jax.vmap(learn)(each, pair, direct, stream.pi, stream.pi_l, race.mine, race.share)
    # judged at 1, 2, 4, ... times the first of 150, 300, 600, ... iterations after which x moves
    first = FIRST_JUDGED * 2.0 ** jnp.ceil(jnp.log2(jnp.maximum(1.0, method.hold / FIRST_JUDGED)))
    judge = state.judge
    if judge is None:
        race = race.heard(f, k, off)
    else:
        judge = judge.saw(stream.batch[:, : stream.used], stream.restart, stream.onward)
        judge, worth = judge.heard(problem, each.x, race.alive, race.value, k, tau, FIRST_JUDGED)
        race = race.told(worth)
    # what x is worth by a plan says nothing of where it goes: no forecast from it, but halves
    race = race.judged(each.x, pieces.span(problem), k, first, forecasts=judge is None)
    race = race.dealt(stream.restart, stream.onward)
    best, used = each.x[race.best] if judge is None else judge.x, state.samples + stream.used
    return RacingState(best, used, each, stream.wanderers, stream.replay, race, judge)


def _stream(
    method: Racer, problem: BilevelProblem, state: RacingState, pair: Pair, xi, source, noise
) -> Stream:
    """One transition along each chain, as its owner would go, what explores beside them, and the past again."""
    race, X, s, N = state.race, state.each.x, state.each.s[0], state.race.owner.shape[0]

    def owners(v: Shaped[Array, "M N ..."]) -> Shaped[Array, "N ..."]:
        return v[race.owner, jnp.arange(N)]

    walks = jax.vmap(lambda x, pair: pieces.walk(problem.sampled(x), s, pair, noise["chains"], method.clip))(X, pair)
    a, s_next, onward, restart = (owners(v) for v in (walks.a, walks.s_next, walks.onward, walks.restart))
    best = jax.tree.map(lambda v: v[race.best] if v.ndim else v, pair)

    def explore(x):
        policy = lambda s: best.at(s).pi  # noqa: E731
        return method.exploration.step(problem.sampled(x), s, state.wanderers, policy, noise["exploring"])

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


def learnt_value(
    problem: BilevelProblem, one: CoupledState, mdp: FiniteMDP, pair: Pair, direct: Direct, firsts: Int[Array, " R"]
) -> Float[Array, ""]:
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


def off_by(problem: BilevelProblem, one: CoupledState, mdp: FiniteMDP, pair: Pair, seen: Passage) -> Float[Array, ""]:
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
