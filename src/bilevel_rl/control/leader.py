r"""How x moves: along its estimated slope, never faster than the follower can follow, back to its best where it strays.

$$m \leftarrow \mu\, m + (1-\mu)\, g, \qquad x \leftarrow \Pi_X\big(x - \zeta_k\, \kappa\, m\big), \qquad
\kappa = \min\Big(1,\; \frac{\delta\, n}{L\, |\zeta_k m|_F}\Big)$$

What decides is the speed of x against the lag of what learns beside it. A critic whose target follows by a share p of the
way after each update remembers $L = 1/((1-\gamma)\, p)$ updates, and n updates lie between two moves. How far a move takes
the follower's answer is measured in its own terms,

$$|\Delta x|_F^2 = \tfrac{1}{\tau^2}\, E_s\, \mathrm{Var}_{a\sim\pi}\big[\partial_x Q_L \cdot \Delta x\big],$$

twice the Kullback-Leibler divergence between the policies before and after, in nats. The gate $\kappa$ keeps the answer from
moving by more than $\delta$ while critics forget. It knows no unit of x, no scale of rewards, no temperature.

Natural steps (`control.metric`) measure the whole step so, not only its bound:
$x \leftarrow \Pi_X(x - \zeta_k \kappa G^{-1} m)$ with G the matrix of that norm. A valley that is flat in x because the
answer hardly moves there is not flat in them.

Where the outcome is worse than the best one beyond noise, x goes back to where that was. What is found there is measured
anew, once critics have forgotten the jump: the record that led back was the best of many, made by followers on their way.
"""

from __future__ import annotations

from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from bilevel_rl.control.metric import AnswerMetric
from bilevel_rl.loop.settings import check_fields
from bilevel_rl.schedules import PowerDecay

BLOCKS = 8  # ours: evidence is the mean of so many blocks against their scatter


class Motion(eqx.Module):
    """What the leader remembers.

    Attributes:
        slope: [d] running mean of the descent direction.
        gathered: sum of outcomes in the present block.
        summed: [d] sum of x in the present block.
        blocks: [BLOCKS] mean outcomes of the last blocks, NaN-free: zeros before they are full.
        places: [BLOCKS, d] mean x of these.
        filled: blocks that were ever filled since the last jump.
        best: best mean outcome of BLOCKS blocks since x last went back, -1e30 before there is one.
        best_error: its standard error.
        best_x: [d] mean x of those.
        quiet: iteration from which outcomes count again after x went back.
        shrink: by what steps have been shortened by restarts.
        restarts: how many there were.
        gate: the last kappa.
        speed: nats by which the answer moves while critics forget, at the last move.
        metric: what natural steps know of the answer; None for plain steps.
    """

    slope: Float[Array, " d"]
    gathered: Float[Array, ""]
    summed: Float[Array, " d"]
    blocks: Float[Array, " n"]
    places: Float[Array, "n d"]
    filled: Int[Array, ""]
    best: Float[Array, ""]
    best_error: Float[Array, ""]
    best_x: Float[Array, " d"]
    quiet: Float[Array, ""]
    shrink: Float[Array, ""]
    restarts: Int[Array, ""]
    gate: Float[Array, ""]
    speed: Float[Array, ""]
    metric: AnswerMetric | None


class Leader(eqx.Module):
    """The motion of x.

    Args:
        zeta: step of x, in units of x for a slope of 1; of natural steps, in squared nats for a unit of outcome.
        momentum: weight of past slopes, in [0, 1).
        clip: bound on the length of a slope.
        drift: nats by which the follower's answer may move while its critics forget; 0 for no gate.
        evidence: standard errors by which the outcome must be worse than the best one before x goes back there; 0 for never.
        hold: iterations for which x stays while the follower catches up.
        block: iterations of a block of outcomes.
        every: iterations from move to move.
        natural: whether steps are measured by how far they take the follower's answer, for estimators that learn that.

    Example:
        >>> Leader(every=8).every
        8
    """

    zeta: PowerDecay = PowerDecay(0.4, 0.5)
    momentum: float = 0.0
    clip: float = 10.0
    drift: float = 10.0
    evidence: float = 4.0
    hold: float = 500.0
    block: int = eqx.field(static=True, default=100)
    every: int = eqx.field(static=True, default=4)
    natural: bool = eqx.field(static=True, default=False)

    def check(self, where: str) -> None:
        """Raise `InvalidConfig` for numbers that are not allowed."""
        self.zeta.check(f"{where}.zeta")
        check_fields(
            where,
            ("momentum", self.momentum, 0 <= self.momentum < 1, "it must be in [0, 1)"),
            ("clip", self.clip, self.clip > 0, "it must be above 0"),
            ("drift", self.drift, self.drift >= 0, "it must be at least 0 (0 for no gate)"),
            ("evidence", self.evidence, self.evidence >= 0, "it must be at least 0 (0 for no restarts)"),
            ("hold", self.hold, self.hold >= 0, "it must be at least 0"),
            ("block", self.block, self.block >= 1, "it must be at least 1"),
            ("every", self.every, self.every >= 1, "it must be at least 1"),
        )

    def init(self, x0: Float[Array, " d"]) -> Motion:
        """At rest."""
        zero, none = jnp.zeros(()), jnp.zeros((), int)
        return Motion(
            jnp.zeros_like(x0), zero, jnp.zeros_like(x0), jnp.zeros(BLOCKS), jnp.zeros((BLOCKS, x0.shape[0])), none,
            jnp.full((), -1e30), zero, x0, zero, jnp.ones(()), none, jnp.ones(()), zero,
            AnswerMetric.begin(x0) if self.natural else None,
        )  # fmt: skip

    def move(
        self, project: Any, motion: Motion, x: Float[Array, " d"], g, pull, k, lag
    ) -> tuple[Motion, Float[Array, " d"]]:
        """One move against the slope g.

        Args:
            project: to x's set.
            pull: [B, M, d] of an estimate, or None: then nothing is gated.
            k: iteration.
            lag: iterations in which critics forget.
        """
        g = jnp.asarray(g, x.dtype)
        g = g * jnp.minimum(1.0, self.clip / jnp.maximum(jnp.linalg.norm(g), 1e-30))
        slope = self.momentum * motion.slope + (1 - self.momentum) * g
        metric = motion.metric if motion.metric is None or pull is None else motion.metric.after(pull)
        along = slope if metric is None else metric.natural(slope)
        ahead = jnp.where(k < self.hold, 0.0, self.zeta(k) * motion.shrink) * along
        speed, gate = jnp.zeros(()), jnp.ones(())
        if pull is not None:
            turned = jnp.einsum("bmd,d->bm", pull, ahead.astype(pull.dtype))
            nats = jnp.sqrt(jnp.mean(jnp.sum(turned**2, -1)) + 1e-30).astype(x.dtype)
            speed = nats * lag / self.every
            gate = jnp.where(self.drift > 0, jnp.minimum(1.0, self.drift / jnp.maximum(speed, 1e-12)), 1.0)
        moved = eqx.tree_at(
            lambda m: (m.slope, m.gate, m.speed, m.metric), motion, (slope, gate, speed * gate, metric),
            is_leaf=lambda v: v is None,
        )  # fmt: skip
        return moved, project(x - gate * ahead)

    def watch(self, motion: Motion, x: Float[Array, " d"], outcome, k, lag) -> tuple[Motion, Float[Array, " d"]]:
        """After each iteration: keep the best x, and go back to it on evidence that the present one is worse.

        Args:
            outcome: what the leader gets at present, from the follower's newest steps.
            lag: iterations in which critics forget; outcomes of that time after x went back are not counted.
        """
        motion = eqx.tree_at(
            lambda m: (m.gathered, m.summed), motion, (motion.gathered + outcome, motion.summed + x)
        )
        full = (k + 1) % self.block == 0
        return jax.lax.cond(full, lambda: self._judged(motion, x, k, lag), lambda: (motion, x))

    def _judged(self, motion: Motion, x, k, lag) -> tuple[Motion, Float[Array, " d"]]:
        # outcomes of a follower that still learns its first answer, or its answer to where x went back, tell nothing
        counts = (k >= self.hold) & (k + 1 - self.block >= motion.quiet)
        mean, place = motion.gathered / self.block, motion.summed / self.block
        blocks = jnp.where(counts, jnp.roll(motion.blocks, 1).at[0].set(mean), motion.blocks)
        places = jnp.where(counts, jnp.roll(motion.places, 1, 0).at[0].set(place), motion.places)
        filled = motion.filled + counts
        ready = filled >= BLOCKS
        now, error = jnp.mean(blocks), jnp.std(blocks, ddof=1) / BLOCKS**0.5
        better = ready & (now > motion.best)
        best, best_x = jnp.where(better, now, motion.best), jnp.where(better, jnp.mean(places, 0), motion.best_x)
        best_error = jnp.where(better, error, motion.best_error)
        either = jnp.sqrt(error**2 + best_error**2)
        lost = ready & (self.evidence > 0) & (now < best - self.evidence * jnp.maximum(either, 1e-12))
        after = Motion(
            jnp.where(lost, 0.0, motion.slope), jnp.zeros(()), jnp.zeros_like(x), blocks, places,
            jnp.where(lost, 0, filled), jnp.where(lost, -1e30, best), best_error, best_x,
            jnp.where(lost, k + 1 + lag, motion.quiet), jnp.where(lost, 0.5, 1.0) * motion.shrink,
            motion.restarts + lost, motion.gate, motion.speed, motion.metric,
        )  # fmt: skip
        return after, jnp.where(lost, best_x, x)
