r"""Pendulum under policies that are given: x composes two of them, or says how strongly one is guided.

Nothing learns below. Both families answer x by a tilt, $\pi_x(a|s) \propto \pi_0(a|s)\, e^{x\,\phi(s,a)}$, which is what the
estimators of the hyper-gradient need: with the reward $x\,\phi$, no discount and a temperature of 1 it is the optimum of a
lower level that pays for its divergence from $\pi_0$.
"""

from __future__ import annotations

from typing import Any, ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Pendulum
from bilevel_rl.control.followers import GivenChain, GivenFlow
from bilevel_rl.control.policies import composition, flow, guidance
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.control.problems.half_policies import STEPS, Half, Pushes, log_likelihood, scale
from bilevel_rl.control.problems.pendulum_shaping import SCALE
from bilevel_rl.errors import InvalidProblem, message


class TiltedPolicy(ControlProblem):
    """x tilts a policy; the leader wants Pendulum's own reward. Derive, and say what the policy and phi are."""

    x0: Float[Array, " d"]
    environment: Environment
    gamma_upper: float

    tilts: ClassVar[bool] = True

    def __init__(self, x0: tuple[float, ...], gamma_upper: float):
        self.x0, self.environment, self.gamma_upper = jnp.asarray(x0, float), Pendulum(), gamma_upper

    def discount_lower(self):
        return 0.0

    def discount_upper(self):
        return self.gamma_upper

    def temperature(self):
        return 1.0

    def reward(self, x, features):
        return x[0] * features[0]

    def utility(self, x, t):
        return t.reward / SCALE

    def check(self, thorough: bool = True) -> None:
        """As every problem's; and x0 has one coordinate, within the box."""
        low, high = (bound.tolist() for bound in self.box())
        if self.x0.shape != (1,) or not low[0] <= float(self.x0[0]) <= high[0]:
            raise InvalidProblem(
                message(f"{self.name}.x0", self.x0.tolist(), f"one number from {low[0]:g} to {high[0]:g}", "Move it inside")
            )
        super().check(thorough)


class PendulumComposition(TiltedPolicy):
    r"""$x = w$: the velocity is $w\,v_1 + (1-w)\,v_2$ at every step of sampling (GPC).

    The first flow knows how to swing up, and guesses near the top; the second knows how to hold there, and guesses
    elsewhere. Neither does the task. $\phi = \log \pi_1(a|s) - \log \pi_2(a|s)$; that the blend's law is
    $\pi_1^w \pi_2^{1-w}$ holds where the flow ends and nearly on the way.

    Args:
        x0: [1] w.
        gamma_upper: of the leader.

    References:
        Compose Your Policies (GPC), whose search is a grid over w by rollouts. w as an upper variable is ours.
    """

    name: ClassVar[str] = "pendulum_composition"
    x_names: ClassVar[tuple[str, ...]] = ("w",)
    references: ClassVar[tuple[str, ...]] = ("gpc2025",)

    def __init__(self, x0: tuple[float, ...] = (0.98,), gamma_upper: float = 0.98):
        super().__init__(x0, gamma_upper)

    def follower_at(self, x, follower: Any, tau: Any):
        return GivenFlow(velocity=composition.Blend(Half(False), Half(True), x[0]), steps=12), tau

    def features(self, t):
        obs, action = t.obs / scale(), flow.encoded(self.environment.action, t.action)
        return (Half(False).log_prob(action, obs) - Half(True).log_prob(action, obs))[None]

    def box(self):
        return jnp.zeros(1), jnp.ones(1)


class PendulumGuidance(TiltedPolicy):
    r"""$x = \gamma$: a policy of random actions, N(0, 1) in half widths, guided towards $p(y|s,a)^\gamma$ (CTRL).

    y says that an action might be the expert's, $\phi = \log p(y|s,a)$. The chain's pushes are the best ones for every
    strength, in closed form. The leader pays $c(x)$ = `price` times $\gamma^2$ for guidance.

    Args:
        x0: [1] gamma.
        gamma_upper: of the leader.
        price: of guidance.

    References:
        Adding Conditional Control to Diffusion Models with Reinforcement Learning; gamma as an upper variable is ours.
    """

    price: float

    name: ClassVar[str] = "pendulum_guidance"
    x_names: ClassVar[tuple[str, ...]] = ("strength",)
    references: ClassVar[tuple[str, ...]] = ("ctrl2024",)

    def __init__(self, x0: tuple[float, ...] = (0.1,), gamma_upper: float = 0.98, price: float = 0.05):
        super().__init__(x0, gamma_upper)
        self.price = price

    def follower_at(self, x, follower: Any, tau: Any):
        return GivenChain(chain=guidance.Broad(STEPS), control=Pushes(x[0])), tau

    def features(self, t):
        return log_likelihood(flow.encoded(self.environment.action, t.action), t.obs / scale())[None]

    def cost(self, x):
        return self.price * jnp.sum(x**2)

    def box(self):
        return jnp.zeros(1), jnp.full(1, 4.0)
