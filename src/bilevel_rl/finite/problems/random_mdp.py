"""Random MDPs of any size: what is true of these was not arranged by anyone."""

from __future__ import annotations

from typing import ClassVar, Literal

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.objectives.policy_energy import PolicyEnergy
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility
from bilevel_rl.finite.problem import BilevelProblem


class RandomMDP(BilevelProblem):
    r"""S states, A actions, K random successors each, and a reward linear in x.

    $$r_x(s, a) = r_0(s, a) + \sum_j x_j \phi_j(s), \qquad |x_j| \le m$$

    with uniform $r_0$ in [0, 1] and normal features; or, with `features="states"`, one entry of x a state:
    $r_x(s, a) = r_0(s, a) + x_s$. Successors are uniform, their probabilities Dirichlet(1). With `moving`, x also tilts
    the probabilities: $P_x(k|s,a) \propto P(k|s,a) \exp(\sum_j x_j \psi_j(k))$ over the K successors.

    Everything follows from `seed` before anything is built. Memory is O(S A K); `reward_at` never builds the table, so
    a sampled solver runs at $S = 10^6$.

    Args:
        states, actions, branching: S, A, K.
        features: d of a low-dimensional x, or `"states"` for d = S.
        objective: `"visitation"` ($-E_d[u] + c|x|^2$, u standard normal) or `"energy"` (of the policy, with c/2).
        seed: of the instance.
        discount: gamma.
        cost: c.
        largest: m; x starts at m/2 in every entry.
        moving: whether x moves the kernel as well.

    Raises:
        InvalidProblem: sizes below 1.

    Example:
        >>> RandomMDP(states=50, actions=3, seed=7).reward(jnp.zeros(3)).shape
        (50, 3)
    """

    base: Float[Array, "S A"]
    features: Float[Array, "S d"] | None
    tilt: Float[Array, "K d"] | None
    largest: float
    per_state: bool = eqx.field(static=True)
    moving: bool = eqx.field(static=True)

    name: ClassVar[str] = "random_mdp"

    def __init__(
        self,
        states: int = 20,
        actions: int = 3,
        branching: int = 4,
        features: int | Literal["states"] = 3,
        objective: Literal["visitation", "energy"] = "visitation",
        seed: int = 0,
        discount: float = 0.9,
        cost: float = 0.05,
        largest: float = 1.0,
        moving: bool = False,
    ):
        self.per_state = features == "states"
        d = states if isinstance(features, str) else features
        if min(states, actions, branching, d) < 1:
            raise InvalidProblem(
                message("RandomMDP", f"S={states}, A={actions}, K={branching}, d={d}", "all must be at least 1",
                        "Raise the sizes")
            )  # fmt: skip
        rng = np.random.default_rng(seed)
        successors = rng.integers(0, states, (states, actions, branching), dtype=np.int32)
        weights = rng.standard_exponential((states, actions, branching))
        weights /= weights.sum(-1, keepdims=True)
        start = rng.standard_exponential(states)
        self.mdp = FiniteMDP.from_sparse(successors, weights, start / start.sum(), discount)
        self.base = jnp.asarray(rng.uniform(size=(states, actions)))
        self.features = None if self.per_state else jnp.asarray(rng.normal(size=(states, d)))
        self.tilt = jnp.asarray(rng.normal(size=(branching, d))) if moving else None
        self.objective = (
            PolicyEnergy(weight=cost) if objective == "energy"
            else VisitationUtility(rng.normal(size=states), weight=cost)
        )  # fmt: skip
        self.largest = largest
        self.moving = moving
        self.x0 = jnp.full(d, largest / 2)

    def reward(self, x):
        return self.base + (x if self.features is None else self.features @ x)[:, None]

    def reward_at(self, x, s, a):
        if self.features is None:
            return self.base[s, a] + x[s]
        r = self.base[s, a]
        # one feature after the other: a sum in a fixed order, whatever the batch
        for j in range(self.features.shape[1]):
            r = r + self.features[s, j] * x[j]
        return r

    def transitions(self, x):
        if self.tilt is None:
            return self.mdp
        tilted = self.mdp.probabilities * jnp.exp(self.tilt @ x)
        return self.mdp.with_probabilities(tilted / jnp.sum(tilted, -1, keepdims=True))

    def transitions_at(self, x, s, a):
        rows = self.mdp.rows(s, a)
        if self.tilt is None:
            return rows
        tilted = rows * jnp.exp(self.tilt @ x)
        return tilted / jnp.sum(tilted, -1, keepdims=True)

    @property
    def moves_transitions(self) -> bool:
        return self.moving

    def box(self):
        return jnp.full_like(self.x0, -self.largest), jnp.full_like(self.x0, self.largest)
