r"""Actions by denoising: the score of noised actions, and the stochastic ways from noise to actions that it gives.

Noised actions are $x_t = \alpha(t)\,a + \sigma(t)\,\varepsilon$, in the same time as flows: noise at 0, the action at 1.
Score, mean noise and velocity of the same law are one function in three forms,

$$\nabla \log p_t(x) = -\frac{E[\varepsilon|x]}{\sigma}, \qquad
v = \frac{\alpha'}{\alpha}\,x + \Big(\frac{\alpha'}{\alpha}\,\sigma^2 - \sigma\sigma'\Big)\, \nabla \log p_t(x),$$

and for every $g(t) \ge 0$ the equation $dx = (v + \tfrac12 g^2 \nabla\log p_t)\,dt + g\,dW$ has the same law at each
time: the probability flow at g = 0, denoising diffusion at $g^2 = \beta$.

References:
    Song et al. 2021, arXiv 2011.13456; Ho, Jain, Abbeel 2020, arXiv 2006.11239.
"""

from __future__ import annotations

import abc
import math

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.control.environment import Box
from bilevel_rl.control.policies import flow
from bilevel_rl.control.policies.flow import Field, Velocity
from bilevel_rl.errors import InvalidConfig, message

LOG_TAU = math.log(2 * math.pi)
EARLY = 0.999  # ours: the time at which densities are taken, where scores are still finite


# -- how actions are noised -------------------------------------------------------------------------------------------


class Path(eqx.Module):
    """A path of laws from noise to actions. Times are scalars in [0, 1]."""

    @abc.abstractmethod
    def alpha(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """How much of the action is in the noised one."""

    @abc.abstractmethod
    def sigma(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """Standard deviation of the noise."""

    @abc.abstractmethod
    def diffusion(self, t: Float[Array, ""]) -> Float[Array, ""]:
        """g(t) of the usual stochastic way."""

    def rates(self, t: Float[Array, ""]) -> tuple[Array, Array, Array, Array]:
        """alpha, sigma and their derivatives."""
        (alpha, d_alpha), (sigma, d_sigma) = (jax.jvp(f, (t,), (jnp.ones_like(t),)) for f in (self.alpha, self.sigma))
        return alpha, sigma, d_alpha, d_sigma

    def noised(self, target: Float[Array, " m"], noise: Float[Array, " m"], t: Float[Array, ""]) -> Float[Array, " m"]:
        """x_t of an action and its noise."""
        return self.alpha(t) * target + self.sigma(t) * noise


class VariancePreserving(Path):
    r"""$\alpha = \exp\big(-\tfrac12\int_0^{1-t}\beta\big)$, $\alpha^2 + \sigma^2 = 1$, $\beta$ linear.

    Nothing of the action is left in the noise at t = 0: $\alpha(0) = .007$ with the usual numbers, which is what makes
    optimal control of its end exact.

    Args:
        low, high: beta at the action and at the noise. Song et al.
    """

    low: float = eqx.field(static=True, default=0.1)
    high: float = eqx.field(static=True, default=20.0)

    def __check_init__(self):
        if not 0 < self.low <= self.high:
            raise InvalidConfig(
                message("VariancePreserving", f"beta from {self.low:g} to {self.high:g}",
                        "both are above 0, the first not larger", "Give 0 < low <= high")
            )  # fmt: skip

    def _decay(self, t):
        s = 1 - t
        return -0.5 * (self.low * s + 0.5 * (self.high - self.low) * s**2)  # log alpha

    def alpha(self, t):
        return jnp.exp(self._decay(t))

    def sigma(self, t):
        return jnp.sqrt(jnp.maximum(-jnp.expm1(2 * self._decay(t)), 0))

    def diffusion(self, t):
        return jnp.sqrt(self.low + (self.high - self.low) * (1 - t))


class Straight(Path):
    r"""$x_t = t\,a + (1-t)\,\varepsilon$, the path of flow matching; $g = \eta\,\sqrt{(1-t)/t}$ is Flow-GRPO's.

    Args:
        eta: size of the stochastic way's noise; Flow-GRPO takes .7.
        least: times below it count as it, where g has its pole.
    """

    eta: float = eqx.field(static=True, default=0.7)
    least: float = eqx.field(static=True, default=0.02)

    def alpha(self, t):
        return t

    def sigma(self, t):
        return 1 - t

    def diffusion(self, t):
        return self.eta * jnp.sqrt((1 - t) / jnp.maximum(t, self.least))


# -- three forms of one function --------------------------------------------------------------------------------------


def score_of_noise(path: Path, noise: Float[Array, " m"], t: Float[Array, ""]) -> Float[Array, " m"]:
    """The score of a mean noise E[eps | x]; t below 1."""
    return -noise / path.sigma(t)


def velocity_of_score(
    path: Path, score: Float[Array, " m"], x: Float[Array, " m"], t: Float[Array, ""]
) -> Float[Array, " m"]:
    """The probability flow's velocity; alpha(t) above 0."""
    alpha, sigma, d_alpha, d_sigma = path.rates(t)
    ratio = d_alpha / alpha
    return ratio * x + (ratio * sigma**2 - sigma * d_sigma) * score


def score_of_velocity(path: Path, v: Float[Array, " m"], x: Float[Array, " m"], t: Float[Array, ""]) -> Float[Array, " m"]:
    """The inverse of `velocity_of_score`; t below 1.

    Example:
        >>> t, x = jnp.array(0.25), jnp.array([2.0])  # of a point at 0: x is noise alone, with standard deviation .75
        >>> score_of_velocity(Straight(), -x / 0.75, x, t).tolist()  # -x / .75^2
        [-3.55555...]
    """
    alpha, sigma, d_alpha, d_sigma = path.rates(t)
    # multiplied by alpha, so that nothing breaks where alpha is 0
    return (alpha * v - d_alpha * x) / (d_alpha * sigma**2 - alpha * sigma * d_sigma)


# -- stochastic ways --------------------------------------------------------------------------------------------------


def drift(path: Path, score: Float[Array, " m"], x: Float[Array, " m"], t: Float[Array, ""]) -> Float[Array, " m"]:
    """Of the stochastic way from noise to actions: v + g^2 score / 2."""
    return velocity_of_score(path, score, x, t) + 0.5 * path.diffusion(t) ** 2 * score


def step_log_prob(x: Float[Array, " m"], after: Float[Array, " m"], slope: Float[Array, " m"], g, h) -> Float[Array, ""]:
    """Log density of one step's end, N(x + h slope, h g^2 I): what DDPO takes for the policy's."""
    z = (after - x - h * slope) / (g * h**0.5)
    return -0.5 * jnp.sum(z**2) - x.shape[0] * (0.5 * LOG_TAU + jnp.log(g * h**0.5))


def denoised(
    path: Path, noise: Float[Array, " m"], x: Float[Array, " m"], t: Float[Array, ""], ahead: Float[Array, ""],
    s: Array | float, z: Float[Array, " m"], reach: float | None = None,
) -> Float[Array, " m"]:  # fmt: skip
    r"""A long step from time t to a later one, exact where the mean noise does not change on the way.

    $$x' = \alpha'\, \hat a + \sqrt{\sigma'^2 - s^2}\; \hat\varepsilon + s\, z, \qquad
    \hat a = (x - \sigma\hat\varepsilon)/\alpha$$

    Args:
        noise: the mean noise in x.
        s: how much new noise comes in: `ancestral` for denoising diffusion, 0 for the implicit step.
        z: standard normal.
        reach: bound on the coordinates of the action that is foreseen; none where None.

    References:
        Song, Meng, Ermon 2021, arXiv 2010.02502, equation 12.
    """
    alpha, sigma, sigma_next = path.alpha(t), path.sigma(t), path.sigma(ahead)
    target = (x - sigma * noise) / alpha
    if reach is not None:
        target = jnp.clip(target, -reach, reach)
        noise = (x - alpha * target) / sigma
    left = jnp.sqrt(jnp.maximum(sigma_next**2 - s**2, 0))
    return path.alpha(ahead) * target + left * noise + s * z


def ancestral(path: Path, t: Float[Array, ""], ahead: Float[Array, ""]) -> Float[Array, ""]:
    r"""$s = \sigma' \sqrt{1 - (\alpha\sigma'/\alpha'\sigma)^2}$: the scatter of x' given x and the action."""
    kept = path.alpha(t) * path.sigma(ahead) / (path.alpha(ahead) * path.sigma(t))
    return path.sigma(ahead) * jnp.sqrt(jnp.maximum(1 - kept**2, 0))


# -- the policy -------------------------------------------------------------------------------------------------------


class Diffusion(eqx.Module):
    """A denoising policy: its network says the mean noise in a noised action.

    Args:
        space: of actions, a `Box`; points are in units of its half width, as with `flow.Flow`.
        steps: in which it is followed.
        path: how actions are noised.
        stochastic: whether sampling adds noise on the way (denoising diffusion) or follows the probability flow.

    Raises:
        InvalidProblem: numbered actions.
        InvalidConfig: no steps.

    Example:
        >>> law = Diffusion(Box((-2.0,), (2.0,)), steps=50)
        >>> nothing = lambda x, t, obs: x * law.path.sigma(t)  # the mean noise where actions are N(0, 1)
        >>> law.sample(nothing, jnp.zeros(0), jax.random.key(0)).shape
        (1,)
    """

    space: Box = eqx.field(static=True)
    steps: int = eqx.field(static=True, default=20)
    path: Path = VariancePreserving()
    stochastic: bool = eqx.field(static=True, default=True)

    def __check_init__(self):
        flow.check_space("Diffusion.space", self.space)
        flow.check_steps("Diffusion", self.steps)

    @property
    def size(self) -> int:
        """m, coordinates of a point."""
        return self.space.size

    def network(self, observations: int, width: int, key: Array, last: float = 1.0) -> Velocity:
        """A network with random weights; it has the shape of a velocity's and says a noise."""
        return Velocity.make(self.size, observations, width, key, last)

    def encoded(self, action: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
        """Actions as points, and as critics see them."""
        return flow.encoded(self.space, action)

    def decoded(self, point: Float[Array, "*B m"]) -> Float[Array, "*B m"]:
        """Points as actions, clipped to the box."""
        return flow.decoded(self.space, point)

    def score(self, net: Field, x: Float[Array, " m"], t: Float[Array, ""], obs: Float[Array, " o"]) -> Float[Array, " m"]:
        """Of noised actions at time t."""
        return score_of_noise(self.path, net(x, t, obs), t)

    def velocity(self, net: Field) -> Field:
        """Of the probability flow, as everything that takes a flow wants it."""
        return lambda x, t, obs: velocity_of_score(self.path, self.score(net, x, t, obs), x, t)

    def end(self, net: Field, obs: Float[Array, " o"], noise: Float[Array, " m"], key: Array) -> Float[Array, " m"]:
        """The point reached from a given noise, not clipped."""
        return self.way(net, obs, noise, key)[-1]

    def way(self, net: Field, obs: Float[Array, " o"], noise: Float[Array, " m"], key: Array) -> Float[Array, "k m"]:
        """All points from a given noise on, at times 0, 1/steps, ..., 1. The last step adds no noise."""
        def step(x, drawn):
            i, key = drawn
            t, ahead = i.astype(noise.dtype) / self.steps, (i + 1).astype(noise.dtype) / self.steps
            s = ancestral(self.path, t, ahead) if self.stochastic else jnp.zeros_like(t)
            z, reach = jax.random.normal(key, x.shape, x.dtype), 1.0 if self.space.bounded else None
            x = denoised(self.path, net(x, t, obs), x, t, ahead, s, z, reach)
            return x, x

        _, after = jax.lax.scan(step, noise, (jnp.arange(self.steps), jax.random.split(key, self.steps)))
        return jnp.concatenate([noise[None], after])

    def sample(self, net: Field, obs: Float[Array, " o"], key: Array) -> Float[Array, " m"]:
        """An action in one state."""
        k_noise, k_way = jax.random.split(key)
        return self.decoded(self.end(net, obs, jax.random.normal(k_noise, (self.size,), jnp.float32), k_way))

    def mode(self, net: Field, obs: Float[Array, " o"]) -> Float[Array, " m"]:
        """The action that the middle of the noise flows to, without noise on the way."""
        quiet = Diffusion(self.space, self.steps, self.path, stochastic=False)
        return self.decoded(quiet.end(net, obs, jnp.zeros(self.size, jnp.float32), jax.random.key(0)))

    def loss(self, net: Field, obs: Float[Array, "B o"], actions: Float[Array, "B m"], key: Array, weights=None) -> Array:
        """Mean squared error of the noise, a sum over coordinates, at a uniform time: denoising score matching."""
        targets = self.encoded(actions)
        k_noise, k_time = jax.random.split(key)
        noise = jax.random.normal(k_noise, targets.shape, targets.dtype)
        t = jax.random.uniform(k_time, targets.shape[:1], targets.dtype)

        def error(target, noise, t, obs):
            return jnp.sum((net(self.path.noised(target, noise, t), t, obs) - noise) ** 2)

        errors = jax.vmap(error)(targets, noise, t, obs)
        return jnp.mean(errors if weights is None else weights * errors)

    def log_prob(self, net: Field, obs: Float[Array, " o"], action: Float[Array, " m"], steps: int = 64) -> Array:
        """Exact log density by the probability flow, in units of the half width; that of the exact flow, before clipping.

        The way back begins a thousandth before the action, where the noise has not gone yet and the score is finite.
        """
        v = self.velocity(net)
        early = lambda x, t, obs: EARLY * v(x, EARLY * t, obs)  # noqa: E731
        return flow.log_density(early, self.encoded(action), obs, steps)
