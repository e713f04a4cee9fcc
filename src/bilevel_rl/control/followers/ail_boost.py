r"""Adversarial imitation by boosting: learners one after the other, each against all that came before.

With weights $\alpha$ of learners (the newest $\eta$, all before it times $1-\eta$), the discriminator d minimises

$$E_{\text{expert}}[e^{-d}] + \sum_i \alpha_i E_{\pi_i}[d], \qquad d^* = \log\frac{p_{\text{expert}}}{p_{\text{ensemble}}}$$

and the newest learner, SAC, is paid d: what it gains is minus the reverse Kullback-Leibler divergence.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Self

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.control import nets
from bilevel_rl.control.environment import Environment
from bilevel_rl.control.followers.follower import scaled
from bilevel_rl.control.followers.sac import SAC, Learnt
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop.settings import check_fields

BOUND = 10.0  # ours: of what d pays, in nats
CHOSEN = 7  # ours: the key of the demonstrations that are kept


def weights(learners: int, eta: float) -> Float[np.ndarray, " n"]:
    """Of n learners, the newest last: they sum to one, and fall by 1 - eta with each that came before.

    Example:
        >>> weights(3, 0.5).tolist()
        [0.25, 0.25, 0.5]
    """
    found = eta * (1 - eta) ** np.arange(learners, dtype=float)[::-1]
    found[0] = (1 - eta) ** (learners - 1)  # what is left, the first learner's
    return found


class Boosted(eqx.Module):
    """What it has learnt besides SAC's networks.

    Attributes:
        judge: the discriminator d(s, a), with Adam's memory.
        ensemble: actors of the last learners, stacked [n, ...], oldest first.
        learners: how many were finished so far.
        steps: updates of the newest one.
    """

    judge: nets.Trained
    ensemble: Any
    learners: Int[Array, ""]
    steps: Int[Array, ""]


class AILBoost(SAC):
    """SAC that is paid by a discriminator between an expert and the weighted replay of all learners.

    On problems with demonstrations (`control.problems.Imitation`) alone; what x pays is not looked at. It acts as its newest
    learner does; `ensemble_weights` and `member` give the mixture of policies that the method answers with.

    Args:
        rate: step size of Adam, for actor, critics and discriminator.
        polyak: share by which targets follow after an update.
        entropy: what a tuned temperature aims at, in nats a coordinate of the action.
        eta: weight of the newest learner, in [0, 1]; 1 looks at its rows alone, 0 at all rows alike, as DAC does.
        penalty: weight of the discriminator's gradient penalty.
        width: units of each of two hidden layers.
        critics: 1, or 2 whose smaller value counts; 0 as SAC has it.
        unit: value that an output of 1 of a critic's network stands for; 0 as SAC has it.
        tuned: whether the temperature is tuned.
        kept: n, actors that are kept.
        every: updates of a learner.
        rows: of the replay that are written in the time of one learner.
        episodes: demonstrations used.
        shown: [N, o + m] scaled observations and encoded actions of the expert; taken from the problem when None.

    References:
        Chang, Sreenivas, Huang, Brantley, Sun 2024, arXiv 2404.08513; weights, loss and reward as in Cornell-RL/ailboost.
        One batch serves discriminator and learner, and learners go on from the last one (INFERRED).
    """

    eta: float = 0.05
    penalty: float = 1.0
    kept: int = eqx.field(static=True, default=10)
    every: int = eqx.field(static=True, default=1000)
    rows: int = eqx.field(static=True, default=16_000)
    episodes: int = eqx.field(static=True, default=4)
    shown: Any = None

    name: ClassVar[str] = "ail_boost"
    references: ClassVar[tuple[str, ...]] = ("chang2024ailboost", "haarnoja2018sac")

    def check(self, environment: Environment) -> None:
        super().check(environment)
        check_fields(
            "follower ail_boost",
            ("eta", self.eta, 0 <= self.eta <= 1, "it must be in [0, 1]"),
            ("penalty", self.penalty, self.penalty >= 0, "it must be at least 0"),
            *((name, getattr(self, name), getattr(self, name) >= 1, "it must be at least 1")
              for name in ("kept", "every", "rows", "episodes")),
        )  # fmt: skip

    def prepared(self, problem: Any) -> Self:
        """With the problem's demonstrations.

        Raises:
            InvalidConfig: it has none.
        """
        if self.shown is not None:
            return super().prepared(problem)
        if not hasattr(problem, "demonstrations"):
            raise InvalidConfig(
                message("follower ail_boost", f"the problem {problem.name}, which shows no expert",
                        "it imitates demonstrations", "Take pendulum_imitation, arm_imitation or an Imitation of your own")
            )  # fmt: skip
        e = problem.environment
        t = jax.tree.map(lambda v: v[: self.episodes], problem.demonstrations(jax.random.key(CHOSEN)))
        flat = lambda v: v.reshape(-1, v.shape[-1])  # noqa: E731
        inputs = [scaled(e, flat(t.obs)), self.law(e).encoded(jnp.clip(flat(t.action), *_inside(e)))]
        return dataclasses.replace(super().prepared(problem), shown=jnp.concatenate(inputs, 1).astype(jnp.float32))

    def init(self, environment: Environment, key: Array) -> Learnt:
        F = super().init(environment, key)
        o, m, w = environment.observation.size, environment.action.size, self.width
        judge = nets.MLP.make((o + m, w, w, 1), jax.random.fold_in(key, 2), last=0.1)
        ensemble = jax.tree.map(lambda v: jnp.broadcast_to(v, (self.kept, *v.shape)), F.actor.params)
        none = jnp.zeros((), jnp.int32)
        more = Boosted(nets.Trained.begin(judge), ensemble, none, none)
        return eqx.tree_at(lambda f: f.more, F, more, is_leaf=lambda v: v is None)

    def ages(self, held, written, batch, key):
        """A learner by its weight, then one of its rows; with eta = 0 all rows alike."""
        k_block, k_row, k_all = jax.random.split(key, 3)
        newest = (written - 1) % self.rows + 1  # rows of the learner that is at work
        before = jnp.maximum(held - newest, 0)  # rows of all that were finished
        blocks = (before + self.rows - 1) // self.rows
        share = jax.random.uniform(k_block, (batch,), jnp.float32)
        eta = jnp.clip(jnp.asarray(self.eta, jnp.float32), 1e-6, 1 - 1e-6)
        # how many learners back: geometric, what is left belongs to the oldest whose rows are held
        back = jnp.floor(jnp.log1p(-share) / jnp.log1p(-eta)).astype(jnp.int32)
        back = jnp.minimum(back, blocks.astype(jnp.int32))
        size = jnp.where(back == 0, newest, jnp.minimum(self.rows, held - newest - (back - 1) * self.rows))
        start = jnp.where(back == 0, 0, newest + (back - 1) * self.rows)
        row = start + jnp.floor(jax.random.uniform(k_row, (batch,), jnp.float32) * size).astype(jnp.int32)
        alike = jnp.floor(jax.random.uniform(k_all, (batch,), jnp.float32) * held).astype(jnp.int32)
        return jnp.where(jnp.asarray(self.eta) > 0, row, alike)

    def judged(self, judge: nets.MLP, pairs: Float[Array, "B i"]) -> Float[Array, " B"]:
        """d of scaled observations and encoded actions."""
        return judge(pairs)[:, 0]

    def judge_loss(self, judge: nets.MLP, own: Float[Array, "B i"], expert: Float[Array, "B i"], key: Array):
        """The reverse divergence's loss, and the penalty on slopes between the two."""
        apart = jnp.mean(jnp.exp(-self.judged(judge, expert))) + jnp.mean(self.judged(judge, own))
        mix = jax.random.uniform(key, (own.shape[0], 1), jnp.float32)
        slopes = jax.vmap(jax.grad(lambda v: judge(v)[0]))(mix * own + (1 - mix) * expert)
        return apart + self.penalty * jnp.mean((jnp.sqrt(jnp.sum(slopes**2, 1) + 1e-12) - 1) ** 2)

    def update(self, environment, F, rows, r, gamma, tau, key):
        assert self.shown is not None, "`prepared` gives it demonstrations"
        k_expert, k_mix = jax.random.split(jax.random.fold_in(key, 5))
        own = jnp.concatenate([scaled(environment, rows.t.obs), self.law(environment).encoded(rows.t.action)], 1)
        shown = jnp.asarray(self.shown, jnp.float32)
        expert = shown[jax.random.randint(k_expert, (own.shape[0],), 0, shown.shape[0])]
        slope = jax.grad(self.judge_loss)(F.more.judge.params, own, expert, k_mix)
        judge = F.more.judge.descend(slope, self.rate)
        paid = jnp.clip(self.judged(judge.params, own), -BOUND, BOUND)
        after = super().update(environment, F, rows, paid, gamma, tau, key)
        return eqx.tree_at(lambda f: f.more, after, self._counted(F.more, judge, after.actor.params))

    def _counted(self, more: Boosted, judge: nets.Trained, actor: nets.MLP) -> Boosted:
        """One update more; at a learner's last its actor joins the ensemble."""
        ends = more.steps + 1 >= self.every
        grown = jax.tree.map(lambda old, new: jnp.concatenate([old[1:], new[None]]), more.ensemble, actor)
        ensemble = jax.tree.map(lambda a, b: jnp.where(ends, a, b), grown, more.ensemble)
        return Boosted(judge, ensemble, more.learners + ends, jnp.where(ends, 0, more.steps + 1))

    def ensemble_weights(self, F: Learnt) -> Float[np.ndarray, " n"]:
        """Of the actors that are kept, oldest first; of those that were never finished 0."""
        there = min(int(F.more.learners), self.kept)
        found = weights(there, float(self.eta)) if there else np.zeros(0)
        return np.concatenate([np.zeros(self.kept - there), found])

    def member(self, F: Learnt, index: int) -> Learnt:
        """The follower that acts as one of its kept actors."""
        return eqx.tree_at(lambda f: f.actor.params, F, jax.tree.map(lambda v: v[index], F.more.ensemble))


def _inside(environment: Environment) -> tuple[Array, Array]:
    return jnp.asarray(environment.action.low, jnp.float32), jnp.asarray(environment.action.high, jnp.float32)


def divergence_loss(judge: Float[Array, " n"], expert: Float[Array, " n"], own: Float[Array, " n"]) -> Float[Array, ""]:
    """The loss on a table: d by cell, and both laws of cells."""
    return expert @ jnp.exp(-judge) + own @ judge
