"""Upper objective that is not linear in the visitation: the energy of the policy itself, plus that of x."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
from jaxtyping import Array, Float

from bilevel_rl.finite.problem import BilevelProblem, UpperObjective


class PolicyEnergy(UpperObjective):
    r"""Prefer a follower that mixes its actions, at little expense of x.

    $$f(x, \pi) = \tfrac{c}{2} |x|^2 + \sum_s m(s)\, \tfrac12 |\pi(\cdot|s)|^2$$

    Its gradients are known given the policy, so `sample` returns them exactly and uses no transition.

    Args:
        weight: c of the quadratic cost of x.
        states: [S] m, how much each state counts; None weighs every state by 1/S (the mean over states).

    Example:
        >>> from bilevel_rl.finite.problems.probes import Bandit
        >>> uniform = jnp.full((1, 3), 1 / 3)
        >>> round(float(PolicyEnergy(weight=1.0).value(jnp.zeros(3), uniform, Bandit())), 4)
        0.1667
    """

    weight: float = 1.0
    states: Float[Array, " S"] | None = None

    name: ClassVar[str] = "policy_energy"

    def value(self, x, pi, problem: BilevelProblem):
        energy = jnp.sum(pi**2, -1) / 2
        mean = jnp.mean(energy) if self.states is None else jnp.sum(self.states * energy)
        return self.weight / 2 * jnp.sum(x**2) + mean
