r"""Inverse reinforcement learning from demonstrations: rewards under which the expert's visits are the follower's own."""

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Arm, Pendulum
from bilevel_rl.control.problem import ControlProblem, Transition
from bilevel_rl.control.problems import experts


class Imitation(ControlProblem):
    r"""$\Phi(x) = \max_\pi E_{d_\pi}[x\cdot\phi + \tau \mathcal{H}] - E_{d_E}[x \cdot \phi] + \lambda |x|^2$.

    At the follower's soft optimum the derivative through the policy is 0 (envelope theorem), what is left is the difference
    of visits: $\nabla\Phi = E_{d_\pi}[\phi] - E_{d_E}[\phi] + 2\lambda x$. So the solver is `partial_sgd`, which takes the
    derivative that holds the policy fixed; others count the policy's answer a second time.

    References:
        Ziebart, Maas, Bagnell, Dey 2008; as two levels: Zeng, Li, Garcia, Hong 2022, arXiv 2210.01808.
    """

    x0: Float[Array, " d"]
    environment: Environment
    shown: Float[Array, " p"]
    gamma: float

    ridge: ClassVar[float] = 0.005  # ours: keeps weights finite that the demonstrations do not fix

    def __init__(self, x0: tuple[float, ...], environment: Environment, gamma: float):
        self.x0, self.environment, self.gamma = jnp.asarray(x0, float), environment, gamma
        self.shown = self.expert_features()

    def discount_lower(self):
        return self.gamma

    @abc.abstractmethod
    def demonstrations(self, key: Array) -> Transition:
        """Transitions of the expert [count, steps]."""

    def expert_features(self) -> Float[Array, " p"]:
        r"""$E_{d_E}[\phi]$, discounted from the first step on, of 64 demonstrations."""

        def found(key: Array) -> Float[Array, " p"]:
            phi = jax.vmap(jax.vmap(self.features))(self.demonstrations(key))
            weights = self.discount_upper() ** jnp.arange(phi.shape[1])
            return jnp.einsum("t,ntp->p", weights / jnp.sum(weights), phi) / phi.shape[0]

        return jax.jit(found)(jax.random.key(7))

    def reward(self, x, features):
        return x @ features

    def utility(self, x, t):
        return -x @ self.features(t)

    def cost(self, x):
        return self.ridge * jnp.sum(x**2) - x @ self.shown


class PendulumImitation(Imitation):
    r"""Pendulum, shown by energy control.

    $$\phi = (\cos\theta,\ -\dot\theta^2/8,\ \sin\theta\,\dot\theta/8,\ \cos\theta\,\dot\theta^2/8)$$

    Args:
        x0: [4] weights.
        gamma: of both.
    """

    name: ClassVar[str] = "pendulum_imitation"
    x_names: ClassVar[tuple[str, ...]] = ("high", "slow", "away", "swing")

    def __init__(self, x0: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0), gamma: float = 0.98):
        super().__init__(x0, Pendulum(), gamma)

    def demonstrations(self, key):
        return experts.paths(self.environment, experts.swing_up, 64, 200, 0.1, key)

    def features(self, t):
        cos, sin, speed = t.next_obs
        return jnp.stack([cos, -(speed**2) / 8, sin * speed / 8, cos * speed**2 / 8])

    def box(self):
        return jnp.full(4, -3.0), jnp.full(4, 3.0)


class ArmImitation(Imitation):
    r"""An arm, shown by the transposed Jacobian; $\phi = (-|w|, -|w|^2, -\text{turned}, w_x, w_y)$, w the way to the target.

    Args:
        x0: [5] weights.
        gamma: of both.
    """

    name: ClassVar[str] = "arm_imitation"
    x_names: ClassVar[tuple[str, ...]] = ("near", "nearer", "still", "right", "up")

    def __init__(self, x0: tuple[float, ...] = (0.0, 0.0, 0.0, 0.0, 0.0), gamma: float = 0.95):
        super().__init__(x0, Arm(joints=2), gamma)

    def demonstrations(self, key):
        return experts.paths(self.environment, experts.reach, 64, 50, 0.1, key)

    def features(self, t):
        way = t.next_obs[-2:]
        away = jnp.sqrt(jnp.sum(way**2) + 1e-8)
        return jnp.concatenate([jnp.stack([-away, -(away**2), -t.info[2]]), way])

    def box(self):
        return jnp.full(5, -3.0), jnp.full(5, 3.0)
