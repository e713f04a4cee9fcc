r"""A planar arm that has to put its tip on a target."""

from typing import ClassVar

import equinox as eqx
import jax
import jax.numpy as jnp

from bilevel_rl.control.environment import Box, Environment, Step


class Arm(Environment):
    r"""Turn each of n joints by up to .2 rad a step; links have length 1/n.

    $$\theta' = \theta + .2\,a, \qquad
    \text{tip} = \tfrac1n \sum_i \big(\cos \textstyle\sum_{j\le i}\theta_j,\ \sin \sum_{j \le i}\theta_j\big), \qquad
    r = -|\text{tip}' - g|$$

    Observed are cosines and sines of the joints, the tip and the way from it to the target g: [2n + 4]. A state is the
    joints and the target, [n + 2]. Starts: joints uniform in $[-.5, .5]$; the target anywhere within .9 of the base.
    `info`: the tip, and how much each step turned, which an archive of behaviours and a price of effort need.

    Args:
        joints: n.
        steps: of an episode.

    References:
        The arm of quality-diversity studies: Vassiliades, Mouret 2018, arXiv 1804.03906, made sequential.
    """

    joints: int = eqx.field(static=True, default=4)
    steps: int = eqx.field(static=True, default=50)

    name: ClassVar[str] = "arm"
    info_names: ClassVar[tuple[str, ...]] = ("tip_x", "tip_y", "turned")

    @property
    def observation(self):
        high = (1.0,) * (2 * self.joints + 2) + (2.0, 2.0)
        return Box(tuple(-v for v in high), high)

    @property
    def action(self):
        return Box((-1.0,) * self.joints, (1.0,) * self.joints)

    @property
    def horizon(self):
        return self.steps

    def reset(self, key):
        k_joints, k_angle, k_far = jax.random.split(key, 3)
        joints = jax.random.uniform(k_joints, (self.joints,), jnp.float32, -0.5, 0.5)
        angle = jax.random.uniform(k_angle, (), jnp.float32, -jnp.pi, jnp.pi)
        far = 0.9 * jnp.sqrt(jax.random.uniform(k_far, (), jnp.float32))
        state = jnp.concatenate([joints, far * jnp.stack([jnp.cos(angle), jnp.sin(angle)])])
        return state, self._observed(state)

    def step(self, state, action, key):
        a = jnp.clip(action, -1.0, 1.0)
        joints = (state[:-2] + 0.2 * a + jnp.pi) % (2 * jnp.pi) - jnp.pi
        state = jnp.concatenate([joints, state[-2:]])
        tip = self.places(joints)[-1]
        away, never = jnp.linalg.norm(tip - state[-2:]), jnp.zeros((), bool)
        info = jnp.concatenate([tip, 0.2 * jnp.sum(jnp.abs(a))[None]])
        return Step(state, self._observed(state), -away, never, never, info)

    def places(self, joints):
        """Where the links end, [n, 2]; the last is the tip."""
        angles = jnp.cumsum(joints)
        return jnp.cumsum(jnp.stack([jnp.cos(angles), jnp.sin(angles)], 1), 0) / joints.shape[0]

    def _observed(self, state):
        joints, tip = state[:-2], self.places(state[:-2])[-1]
        return jnp.concatenate([jnp.cos(joints), jnp.sin(joints), tip, state[-2:] - tip])

    def frame(self, state):
        """The links from the base on, [n + 1, 2], and the target [1, 2]."""
        return {"segments": jnp.concatenate([jnp.zeros((1, 2)), self.places(state[:-2])]), "goals": state[None, -2:]}
