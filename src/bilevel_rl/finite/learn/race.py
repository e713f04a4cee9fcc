r"""Several starts in one run: which of them go on, and which chain walks for which.

Each start has a value $\hat f_i$, learnt along with its critics. At iterations $h, 2h, 4h, \dots$ the starts are judged:
one is dropped when even a forecast by its own progress would leave it behind,

$$\hat f_i - 2\,\big(\hat f_i(k/2) - \hat f_i(k)\big)^+ > \min_j \hat f_j + 2\,(\sigma_i + \sigma_j)$$

with $\sigma$ how sure a value is, or when a better one has come to the same place. From the third judgement on at most half
of the starts go on, at each later one half of those: starts that can't be told apart share chains for no longer.
Iterations at which one judges double, so no horizon has to be known. Chains of what is dropped go over to the others.

Where all transitions can be counted a start is worth what planning says (`coupled.judging`): sure of what x is worth, and
silent on where it goes, so nothing is forecast and starts have until they are halved. Elsewhere critics tell.

A critic may be wrong about its own policy. So what a start's own chains gain, less what its critic foretold, is added to
the learnt value: the sum is right on average whatever the critic says.
"""

from __future__ import annotations

import equinox as eqx
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.finite.model import small

FORECAST = 2.0  # ours: twice the progress since the last judgement, made in as much time as will pass until the next
DEVIATIONS = 2.0  # ours: values closer than this many deviations can't be told apart
SAME_PLACE = 0.02  # ours: of the span of x, in each coordinate
RECENT = 8.0  # ours: a value is the mean over the last eighth of the run, roughly
WHOLE_FIELD = 1  # ours: judgements after which at most half of the starts go on at the next, then a quarter, ...
FIRSTS = 256  # ours: first states that are remembered


class Race(eqx.Module):
    """Where the starts stand.

    Attributes:
        value: [M] running mean of each start's f.
        spread: [M] running mean of its squared deviations.
        off: [M] running mean of what its own chains say that the value is off by.
        noise: [M] running mean of the squared deviations of that.
        before: [M] the value when starts were last judged.
        times: how often they were judged.
        alive: [M] which go on.
        owner: [N] the start for which each chain walks.
        turn: [N] whose turn comes next, counted along those that go on.
        firsts: [F] first states of episodes, a ring.
        met: how many were met.
    """

    value: Float[Array, " M"]
    spread: Float[Array, " M"]
    off: Float[Array, " M"]
    noise: Float[Array, " M"]
    before: Float[Array, " M"]
    times: Int[Array, ""]
    alive: Bool[Array, " M"]
    owner: Int[Array, " N"]
    turn: Int[Array, " N"]
    firsts: Int[Array, " F"]
    met: Int[Array, ""]

    @classmethod
    def begin(cls, starts: int, chains: int, firsts: Int[Array, " B"]) -> Race:
        """All go on, the chains dealt out among them."""
        B = firsts.shape[0]
        turn = jnp.arange(chains, dtype=jnp.int32)
        return cls(
            *[jnp.zeros(starts)] * 5, jnp.zeros((), int), jnp.ones(starts, bool),
            turn % starts, turn, jnp.tile(firsts.astype(jnp.int32), -(-FIRSTS // B))[:FIRSTS], jnp.array(B, jnp.int32),
        )  # fmt: skip

    @property
    def best(self) -> Int[Array, ""]:
        """The start with the lowest value of those that go on."""
        return jnp.argmin(jnp.where(self.alive, self.f, jnp.inf))

    @property
    def f(self) -> Float[Array, " M"]:
        """What each start is worth: its learnt value, corrected by its own chains."""
        return self.value + self.off

    @property
    def mine(self) -> Bool[Array, "M N"]:
        """Which chains walk for each start."""
        return self.owner[None, :] == jnp.arange(self.value.shape[0])[:, None]

    @property
    def share(self) -> Float[Array, " M"]:
        """How many chains walk for each, relative to an equal share among those that go on; 1 on average."""
        each = self.owner.shape[0] / jnp.sum(self.alive)
        return jnp.sum(self.mine, axis=1) / each

    def heard(self, fresh: Float[Array, " M"], k, off: Float[Array, " M"] | float = 0.0) -> Race:
        """With the newest values of iteration k, and what the chains say that they are off by."""
        rate = RECENT / (k + RECENT)
        away, wrong = fresh - self.value, off - self.off
        spread, noise = (1 - rate) * (self.spread + rate * away**2), (1 - rate) * (self.noise + rate * wrong**2)
        now = self.value + rate * away, spread, self.off + rate * wrong, noise
        return eqx.tree_at(lambda r: (r.value, r.spread, r.off, r.noise), self, now)

    def told(self, worth: Float[Array, " M"]) -> Race:
        """With values that are no estimates of the critics, and are sure."""
        return eqx.tree_at(lambda r: r.value, self, worth)

    def judged(
        self, x: Float[Array, "M d"], span: Float[Array, " d"], k, first, forecasts: bool = True
    ) -> Race:
        """After iteration k, with what is dropped where k + 1 is a time to judge.

        Args:
            x: where each start is.
            span: the size of x's set in each coordinate.
            first: h.
            forecasts: whether a start is dropped for what its progress says of its end; else it has until they are halved.
        """
        doublings = jnp.round(jnp.log2((k + 1) / first))
        now = (doublings >= 0) & (k + 1 == jnp.round(first * 2.0**doublings))
        # what the chains say scatters from one iteration to the next: its mean over many is as sure as their number
        best, f, deviation = self.best, self.f, jnp.sqrt(self.spread + self.noise * RECENT / (k + RECENT) / 2)
        forecast = f - FORECAST * jnp.maximum(self.before - f, 0.0)
        behind = forecast > f[best] + DEVIATIONS * (deviation + deviation[best])
        # the better of two in one place stays, the first of equals
        M = f.shape[0]
        near = jnp.all(jnp.abs(x[:, None] - x[None]) <= SAME_PLACE * span, axis=-1) & self.alive[None, :]
        order = jnp.argsort(jnp.argsort(jnp.where(self.alive, f, jnp.inf)))
        doubled = jnp.any(near & (order[None, :] < order[:, None]), axis=1)
        known = self.times > 0  # nothing is dropped before progress was measured once
        late = order >= M * 2.0 ** jnp.minimum(0, WHOLE_FIELD - self.times)
        dropped = (behind | doubled | late) if forecasts else (doubled | late)
        alive = self.alive & ~(now & known & dropped & (jnp.arange(M) != best))
        before = jnp.where(now, f, self.before)
        return eqx.tree_at(lambda r: (r.alive, r.before, r.times), self, (alive, before, self.times + now))

    def dealt(self, restart: Bool[Array, " N"], onward: Int[Array, " N"]) -> Race:
        """With chains that restart, or whose start was dropped, given to the next of those that go on.

        Args:
            restart, onward: of the last step along each chain; where it restarted `onward` is a first state.
        """
        leaves = restart | ~self.alive[self.owner]
        turn = self.turn + leaves
        line = jnp.argsort(~self.alive)  # those that go on, in order
        owner = jnp.where(leaves, line[turn % jnp.sum(self.alive)], self.owner).astype(self.owner.dtype)
        # first states into the ring, one place each; what is none goes past its end and is left out
        F = self.firsts.shape[0]
        place = jnp.where(restart, (self.met + jnp.cumsum(restart) - 1) % F, F)
        firsts = self.firsts.at[place].set(onward.astype(self.firsts.dtype), mode="drop")
        met = (self.met + jnp.sum(restart)).astype(self.met.dtype)
        return eqx.tree_at(lambda r: (r.owner, r.turn, r.firsts, r.met), self, (owner, turn, firsts, met))

    def some_firsts(self, u: Float[Array, " R"]) -> Int[Array, " R"]:
        """R of the remembered first states, with replacement."""
        return small.rows(self.firsts, (u * self.firsts.shape[0]).astype(jnp.int32))
