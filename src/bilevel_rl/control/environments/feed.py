r"""A feed that shows one topic at a time, to a reader who tires of it and may leave."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.environment import Box, Discrete, Environment, Step

APPEAL = (0.9, 0.6, 0.5, 0.4)  # ours: what catches the eye
WORTH = (-0.6, 0.3, 0.7, 1.0)  # ours: what a click is worth afterwards


class Feed(Environment):
    r"""Choose one of four topics; the reader clicks with probability appeal x freshness x trust.

    Showing topic k tires of it, $f_k' = .6 f_k$, the others recover, $f_j' = f_j + .2\,(1 - f_j)$; a click moves trust w by
    a twentieth of the way to 1 where the topic is worth something, to 0 where it is not.
    After each step the reader leaves for good with probability $.05\,(1 - w)$. The reward is the click: what an engine that
    looks no further will maximise. `info`: the click, what it was worth, and whether each topic was shown.

    Observed are the four freshnesses and trust, [5], which are the state. Starts: all fresh, trust .8.

    Args:
        steps: of a session.

    References:
        The shape of the dynamics (satiation, recovery, trust) follows RecSim's "interest evolution": Ie et al. 2019,
        arXiv 1909.04847; numbers are ours.
    """

    steps: int = eqx.field(static=True, default=100)

    name: ClassVar[str] = "feed"
    info_names: ClassVar[tuple[str, ...]] = ("click", "worth", "shown_0", "shown_1", "shown_2", "shown_3")

    @property
    def observation(self):
        return Box((0.0,) * 5, (1.0,) * 5)

    @property
    def action(self):
        return Discrete(4)

    @property
    def horizon(self):
        return self.steps

    def reset(self, key):
        state = jnp.asarray((1.0, 1.0, 1.0, 1.0, 0.8), jnp.float32)
        return state, state

    def step(self, state, action, key):
        k_click, k_leave = jax.random.split(key)
        appeal, worth = jnp.asarray(APPEAL, jnp.float32), jnp.asarray(WORTH, jnp.float32)
        fresh, trust = state[:4], state[4]
        shown = jax.nn.one_hot(action, 4, dtype=jnp.float32)
        chance = appeal[action] * fresh[action] * trust
        click = (jax.random.uniform(k_click, (), jnp.float32) < chance).astype(jnp.float32)
        fresh = jnp.where(shown > 0, 0.6 * fresh, fresh + 0.2 * (1 - fresh))
        trust = trust + 0.05 * click * ((worth[action] > 0) - trust)
        gone = jax.random.uniform(k_leave, (), jnp.float32) < 0.05 * (1 - trust)
        state = jnp.concatenate([fresh, trust[None]])
        info = jnp.concatenate([jnp.stack([click, click * worth[action]]), shown])
        return Step(state, state, click, gone, jnp.zeros((), bool), info)

    def frame(self, state):
        """Freshness of the topics and trust as bars, [5, 2]."""
        return {"bars": jnp.stack([jnp.arange(5, dtype=jnp.float32), state], 1)}
