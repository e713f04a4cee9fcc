"""A random MDP whose reward is a quadratic form of x, with a known optimum: x = 0 and a follower that does not care."""

from __future__ import annotations

from typing import ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.objectives.policy_energy import PolicyEnergy
from bilevel_rl.finite.problem import BilevelProblem


class Synthetic(BilevelProblem):
    r"""S states, A actions, and one number $x^\top M x$ that scales a fixed table of rewards.

    $$r_x(s, a) = U_{sa} U'_{sa}\, x^\top M x, \qquad f(x, \pi) = \tfrac12 |x|^2 + \tfrac12 |\pi|^2$$

    with U, U' uniform on [0, 1) and M standard normal. $|\pi|^2$ is least where the policy is uniform, which x = 0 brings
    about, so the optimum is S/(2A) whatever was drawn: 1.0 with the default sizes. Each row of the kernel has a random
    number 1..S-1 of successors, with normalised uniform probabilities.

    Args:
        states, actions: S and A.
        dimension: d of x.
        discount: gamma.
        seed: of the instance, set before anything is drawn.

    Raises:
        InvalidProblem: fewer than two states, or sizes below 1.

    References:
        The synthetic experiment of Yang, Gao and Yuan 2025, its temperature 1.
    """

    table: Float[Array, "S A"]
    form: Float[Array, "d d"]

    name: ClassVar[str] = "synthetic"
    references: ClassVar[tuple[str, ...]] = ("yang2025sobirl",)

    def __init__(
        self, states: int = 10, actions: int = 5, dimension: int = 100, discount: float = 0.5, seed: int = 0
    ):
        if states < 2 or min(actions, dimension) < 1:
            raise InvalidProblem(
                message("Synthetic", f"S={states}, A={actions}, d={dimension}", "S >= 2 and A, d >= 1 are needed",
                        "Raise the sizes")
            )  # fmt: skip
        rng = np.random.default_rng(seed)
        weights = rng.uniform(size=(states, actions, states))
        order = np.argsort(rng.uniform(size=weights.shape), axis=-1)
        kept = order < rng.integers(1, states, (states, actions, 1))  # a random set of that many successors
        weights = np.where(kept, weights, 0.0)
        self.mdp = FiniteMDP.from_dense(weights / weights.sum(-1, keepdims=True), discount=discount)
        self.table = jnp.asarray(rng.uniform(size=(states, actions)) * rng.uniform(size=(states, actions)))
        self.form = jnp.asarray(rng.normal(size=(dimension, dimension)))
        self.objective = PolicyEnergy(weight=1.0, states=jnp.ones(states))
        self.x0 = jnp.asarray(rng.normal(size=dimension))

    def reward(self, x):
        return self.table * (x @ self.form @ x)

    def reward_at(self, x, s, a):
        return self.table[s, a] * (x @ self.form @ x)

    def temperature(self):
        return 1.0
