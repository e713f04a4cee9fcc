r"""x is a setting of the learner itself: its temperature, or its pessimism. Answers are known."""

import dataclasses
from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Environment
from bilevel_rl.control.environments import Stakes
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.errors import InvalidProblem, message


class _Staked(ControlProblem):
    """The follower is paid what the environment pays, and looks at one stake only; x does not touch its reward."""

    def discount_lower(self):
        return 0.0

    def reward(self, x, features):
        return features[0]

    def features(self, t):
        return t.reward[None]


class TemperatureChoice(_Staked):
    r"""The leader wants stakes to be varied, but not wild: $u = v - v^2/(2 v^*)$ with $v = (a - \mu/c)^2$.

    x is the logarithm of the follower's temperature. Its stakes have variance $\tau/c$, and the fourth moment of a normal
    law is three times the square of its variance, so that $\Phi(x) = -\tau/c + \tfrac{3}{2 v^*} (\tau/c)^2$, least at
    $\tau = c\,v^*/3$.

    Args:
        x0: [1] logarithm of the first temperature.
        wanted: $v^*$.
    """

    x0: Float[Array, " d"] = (-3.5,)
    environment: Environment = Stakes(risk=0.1)
    wanted: float = 0.6

    name: ClassVar[str] = "temperature_choice"
    x_names: ClassVar[tuple[str, ...]] = ("log_temperature",)

    def utility(self, x, t):
        v = (t.action[0] - self.environment.gain / self.environment.drag) ** 2
        return v - v**2 / (2 * self.wanted)

    def follower_at(self, x, follower, tau):
        return follower, jnp.exp(x[0])

    def box(self):
        return jnp.full(1, -5.0), jnp.full(1, 0.0)

    def truth(self, x, tau):
        v = jnp.exp(x[0]) / self.environment.drag
        return -v + 1.5 * v**2 / self.wanted

    def best(self) -> float:
        """The optimum's x."""
        return float(jnp.log(self.environment.drag * self.wanted / 3))


class PessimismChoice(_Staked):
    r"""An insurer wants bets it can bear: $u = \mu a - \tfrac12 (c + \lambda\sigma^2) a^2$. x is the follower's $\beta$.

    A follower that counts $\beta$ standard deviations off (`followers.STAC`, with the discount 0) wants
    $(\mu - \beta\sigma) a - \tfrac c2 a^2$ and stakes $m = (\mu - \beta\sigma)/c$ on average, with variance $\tau/c$; the
    leader wants $\mu/(c + \lambda\sigma^2)$.

    Args:
        x0: [1] the first $\beta$.
        aversion: $\lambda$, the leader's.
    """

    x0: Float[Array, " d"] = (0.0,)
    environment: Environment = Stakes(risk=0.5)
    aversion: float = 4.0

    name: ClassVar[str] = "pessimism_choice"
    x_names: ClassVar[tuple[str, ...]] = ("beta",)

    def _borne(self) -> float:
        return self.environment.drag + self.aversion * self.environment.risk**2

    def utility(self, x, t):
        a = t.action[0]
        return self.environment.gain * a - 0.5 * self._borne() * a**2

    def follower_at(self, x, follower, tau):
        return dataclasses.replace(follower, beta=x[0]), tau

    def accept(self, solver):
        super().accept(solver)
        follower = getattr(solver, "follower", None)
        if follower is not None and not hasattr(follower.on(self.environment), "beta"):
            raise InvalidProblem(
                message(f"solver {solver.name} on {self.name}", f"the follower {follower.on(self.environment).name!r}",
                        "x is the pessimism of a follower that has one", "Add --solver.follower.chosen stac")
            )  # fmt: skip

    def temperature(self):
        return 0.02

    def box(self):
        return jnp.full(1, -1.0), jnp.full(1, 1.8)

    def truth(self, x, tau):
        e = self.environment
        m = (e.gain - x[0] * e.risk) / e.drag
        return -e.gain * m + 0.5 * self._borne() * (m**2 + tau / e.drag)

    def best(self) -> float:
        """The optimum's x."""
        e = self.environment
        return (e.gain - e.drag * e.gain / self._borne()) / e.risk
