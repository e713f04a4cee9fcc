r"""Probe problems: each is as small as can be, has a known answer, and breaks when one part of a solver is wrong.

| Probe | What it isolates | What must happen |
|---|---|---|
| `Bandit` | response of the policy to x: no critic, no transitions | x reaches the closed-form stationary point |
| `EnergyBandit` | an objective that is not linear in the visitation | the same |
| `CriticOnly` | the critic: actions change nothing | V is learnt, the policy stays uniform, x goes to its centre |
| `PolicyIndependent` | cancellation: x pays all states alike | D is the cost's gradient alone, whatever the followers |
| `Irrelevant` | x that the follower never sees | D is the cost's gradient alone |
| `TwoState` | discounting, visitation and response together | closed form with one unknown |
| `MovingKernel` | x in the probabilities and not in the reward | x reaches the closed-form stationary point |
| `Stationary` | a start where the hyper-gradient is zero | x stays there on average |
"""

from __future__ import annotations

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.objectives.policy_energy import PolicyEnergy
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility
from bilevel_rl.finite.problem import BilevelProblem


class Probe(BilevelProblem):
    """A problem whose hyper-gradient is known in closed form."""

    @abc.abstractmethod
    def known_gradient(self, x: Float[Array, " d"], tau) -> Float[Array, " d"]:
        r"""$\nabla \Phi_\tau(x)$, written down and not computed by an oracle."""

    def box(self):
        return jnp.full_like(self.x0, -2.0), jnp.full_like(self.x0, 2.0)

    def temperature(self):
        return 0.5


def _still(states: int, actions: int, discount: float) -> FiniteMDP:
    """From anywhere, under any action, a uniformly drawn state."""
    return FiniteMDP.from_dense(jnp.full((states, actions, states), 1 / states), discount=discount)


class Bandit(Probe):
    r"""One state, three arms, $\gamma = 0$, $r_x(a) = x_a$, $f = -E_\pi[u] + c|x|^2$.

    $\pi = \mathrm{softmax}(x/\tau)$, so $\partial_a \Phi = 2 c x_a - \pi_a (u_a - E_\pi[u]) / \tau$.
    """

    name: ClassVar[str] = "bandit"

    def __init__(self, utility: tuple[float, ...] = (1.0, 0.0, -0.5), cost: float = 0.1):
        self.mdp = _still(1, len(utility), 0.0)
        self.objective = VisitationUtility(jnp.asarray(utility)[None], weight=cost)
        self.x0 = jnp.linspace(-0.5, 0.5, len(utility))

    def reward(self, x):
        return x[None]

    def reward_at(self, x, s, a):
        return x[a]

    def known_gradient(self, x, tau):
        pi, u = jax.nn.softmax(x / tau), self.objective.utility[0]
        return 2 * self.objective.weight * x - pi * (u - pi @ u) / tau


class EnergyBandit(Probe):
    r"""One state, three arms, $r_x = r_0 + x$, $f = \tfrac{c}{2}|x|^2 + \tfrac12 |\pi|^2$: pay so that the arms are even.

    $\partial_a \Phi = c\, x_a + \pi_a (\pi_a - |\pi|^2)/\tau$.
    """

    base: Float[Array, " A"]

    name: ClassVar[str] = "energy_bandit"

    def __init__(self, base: tuple[float, ...] = (1.0, 0.0, 0.5), cost: float = 0.1):
        self.mdp = _still(1, len(base), 0.0)
        self.objective = PolicyEnergy(weight=cost)
        self.base = jnp.asarray(base)
        self.x0 = jnp.zeros(len(base))

    def reward(self, x):
        return (self.base + x)[None]

    def reward_at(self, x, s, a):
        return self.base[a] + x[a]

    def known_gradient(self, x, tau):
        pi = jax.nn.softmax((self.base + x) / tau)
        return self.objective.weight * x + pi * (pi - pi @ pi) / tau


class CriticOnly(Probe):
    r"""Three states that come and go at random: actions change nothing, x pays two of the states.

    The policy stays uniform and $V(s) = r(s) + \tau\log A + \gamma (\bar r + \tau \log A)/(1-\gamma)$. No response, so
    $\nabla\Phi = 2c(x - x_c)$.
    """

    name: ClassVar[str] = "critic_only"

    def __init__(self, cost: float = 0.25, discount: float = 0.8):
        self.mdp = _still(3, 2, discount)
        centre = jnp.array([0.5, -0.5])
        self.objective = VisitationUtility(jnp.array([0.0, 1.0, 2.0]), weight=cost, centre=centre)
        self.x0 = jnp.array([1.0, 1.0])

    def reward(self, x):
        return jnp.broadcast_to(jnp.append(x, 1.0)[:, None], (3, 2))

    def known_gradient(self, x, tau):
        return 2 * self.objective.weight * (x - self.objective.centre)

    def known_value(self, x: Float[Array, " d"], tau) -> Float[Array, " S"]:
        """The follower's regularised value."""
        r, gamma = jnp.append(x, 1.0), self.mdp.discount
        plus = tau * jnp.log(2.0)
        return r + plus + gamma * (jnp.mean(r) + plus) / (1 - gamma)


class PolicyIndependent(Probe):
    r"""Two states, two moves, and every state pays $x$ alike: no policy earns more of it, so $\nabla\Phi = 2c(x - x_c)$."""

    base: Float[Array, "S A"]

    name: ClassVar[str] = "policy_independent"

    def __init__(self, cost: float = 0.25):
        self.mdp = FiniteMDP.from_dense([[[1.0, 0.0], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]]], discount=0.7)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=cost, centre=jnp.array([0.5]))
        self.base = jnp.array([[0.0, 0.3], [0.6, 0.1]])
        self.x0 = jnp.array([-1.0])

    def reward(self, x):
        return self.base + x[0]

    def known_gradient(self, x, tau):
        return 2 * self.objective.weight * (x - self.objective.centre)


class Irrelevant(Probe):
    r"""Two states whose reward x does not enter: $\nabla\Phi = 2c(x - x_c)$."""

    base: Float[Array, "S A"]

    name: ClassVar[str] = "irrelevant"

    def __init__(self, cost: float = 0.25):
        self.mdp = FiniteMDP.from_dense([[[1.0, 0.0], [0.2, 0.8]], [[0.7, 0.3], [0.1, 0.9]]], discount=0.7)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=cost, centre=jnp.array([0.5, -0.5]))
        self.base = jnp.array([[0.0, 0.3], [0.6, 0.1]])
        self.x0 = jnp.array([-1.0, 1.0])

    def reward(self, x):
        return self.base + 0.0 * x[0]

    def known_gradient(self, x, tau):
        return 2 * self.objective.weight * (x - self.objective.centre)


class TwoState(Probe):
    r"""Action 1 leads to state 1 from anywhere, action 0 to state 0; being in state 1 pays x.

    From both states the choice is the same, $p = \sigma(\gamma x/\tau)$ for action 1, because only the next state's pay
    depends on it. From a start in state 0, $d(1) = \gamma p$, and with $f = -u\,d(1) + c x^2$

    $$\Phi'(x) = 2 c x - u \gamma^2 p (1 - p) / \tau .$$
    """

    name: ClassVar[str] = "two_state"

    def __init__(self, utility: float = 1.0, cost: float = 0.2, discount: float = 0.8):
        P = [[[1.0, 0.0], [0.0, 1.0]], [[1.0, 0.0], [0.0, 1.0]]]
        self.mdp = FiniteMDP.from_dense(P, start=[1.0, 0.0], discount=discount)
        self.objective = VisitationUtility(jnp.array([0.0, utility]), weight=cost)
        self.x0 = jnp.array([-0.5])

    def reward(self, x):
        return jnp.broadcast_to(jnp.stack([jnp.zeros_like(x[0]), x[0]])[:, None], (2, 2))

    def reward_at(self, x, s, a):
        return x[0] * s

    def known_gradient(self, x, tau):
        gamma, u = self.mdp.discount, self.objective.utility[1, 0]
        p = jax.nn.sigmoid(gamma * x / tau)
        return 2 * self.objective.weight * x - u * gamma**2 * p * (1 - p) / tau


class MovingKernel(Probe):
    r"""x moves the probabilities, not the reward: action 1 reaches state 1 with probability $q = \sigma(x)$, action 0 never.

    State 1 pays one. The follower takes action 1 with probability $p = \sigma(\gamma q/\tau)$ in both states, so
    $d(1) = \gamma p q$ from a start in state 0, and with $f = -u\,d(1) + c(x - x_c)^2$

    $$\Phi'(x) = 2 c (x - x_c) - u \gamma\, \big(p + q\, p (1 - p) \gamma/\tau\big)\, q (1 - q) .$$

    The reaction of the follower to x and the direct effect of x on where it goes are both of order one.
    """

    name: ClassVar[str] = "moving_kernel"

    def __init__(self, utility: float = 1.0, cost: float = 0.1, discount: float = 0.8):
        P = [[[1.0, 0.0], [0.5, 0.5]], [[1.0, 0.0], [0.5, 0.5]]]
        self.mdp = FiniteMDP.from_dense(P, start=[1.0, 0.0], discount=discount)
        self.objective = VisitationUtility(jnp.array([0.0, utility]), weight=cost, centre=jnp.array([-1.0]))
        self.x0 = jnp.array([-1.0])

    def reward(self, x):
        return jnp.array([[0.0, 0.0], [1.0, 1.0]]) + 0.0 * x[0]

    def transitions(self, x):
        q = jax.nn.sigmoid(x[0])
        # action 1 goes to states 0 and 1, in the order in which the successors are stored
        reached = jnp.where(self.mdp.successors[:, 1] == 1, q, 1 - q)
        return self.mdp.with_probabilities(self.mdp.probabilities.at[:, 1].set(reached))

    def known_gradient(self, x, tau):
        gamma, u = self.mdp.discount, self.objective.utility[1, 0]
        q = jax.nn.sigmoid(x)
        p = jax.nn.sigmoid(gamma * q / tau)
        slope = (p + q * p * (1 - p) * gamma / tau) * q * (1 - q)
        return 2 * self.objective.weight * (x - self.objective.centre) - u * gamma * slope


class Stationary(Probe):
    r"""A two-armed bandit that starts where the hyper-gradient is zero: the arms pay x and -x, the leader gains on both.

    $r_x = (x, -x)$ and $u = (1, 1)$: whatever the agent does earns the leader the same, so $\Phi' = 2 c x$, zero at 0.
    Both estimators' noise is there, their mean is not.
    """

    name: ClassVar[str] = "stationary"

    def __init__(self, cost: float = 0.5):
        self.mdp = _still(1, 2, 0.0)
        self.objective = VisitationUtility(jnp.ones((1, 2)), weight=cost)
        self.x0 = jnp.zeros(1)

    def reward(self, x):
        return (x[0] * jnp.array([1.0, -1.0]))[None]

    def reward_at(self, x, s, a):
        return x[0] * (1 - 2 * a)

    def known_gradient(self, x, tau):
        return 2 * self.objective.weight * x


PROBES = (
    Bandit, EnergyBandit, CriticOnly, PolicyIndependent, Irrelevant, TwoState, MovingKernel, Stationary,
)  # fmt: skip
