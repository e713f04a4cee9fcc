"""Inverse reinforcement learning on toy-text: the reward that explains an expert's demonstrations."""

from __future__ import annotations

from typing import ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.model.mdp import FiniteMDP, gymnasium_rewards
from bilevel_rl.finite.objectives.demonstration_likelihood import DemonstrationLikelihood, demonstrations
from bilevel_rl.finite.problem import BilevelProblem, GridLayout
from bilevel_rl.finite.problems.toy_text import LAKE_MOVES


class InverseRL(BilevelProblem):
    r"""Find the reward of each cell of the frozen lake under which the optimal walker does what an expert did.

    $$r_x(s) = x_s, \qquad f(x, \pi) = -\sum_{s,a} n(s,a) \log \pi(a|s) + \lambda |x|^2, \qquad x \in R^S$$

    The expert is soft-optimal for the lake's own reward at the same temperature. f is maximum causal entropy inverse
    RL. No reward explains more than the expert's own policy does (`entropy_of_expert`), and many explain as much: a
    constant adds nothing. The lake pays on arrival, which a reward of states can come near to but not say.

    Args:
        size: `"4x4"` or `"8x8"`.
        episodes: of the expert; None for infinitely many.
        steps: of an episode.
        regulariser: $\lambda$; 0 leaves x free where the expert never was.
        temperature: of expert and follower.
        slippery: whether the lake is.
        batch: demonstrated pairs an estimate uses; 0 for all.
        discount: gamma.
        seed: of the demonstrations.

    Raises:
        InvalidProblem: an unknown size, or no episode.
    """

    expert: Float[Array, "S A"]
    graded_at: float = eqx.field(static=True)
    rows: int = eqx.field(static=True)

    name: ClassVar[str] = "inverse_rl"
    state_reward: ClassVar[bool] = True
    references: ClassVar[tuple[str, ...]] = ("ziebart2010causal", "towers2024gymnasium")

    def __init__(
        self, size: str = "4x4", episodes: int | None = 200, steps: int = 50, regulariser: float = 1e-4,
        temperature: float = 0.02, slippery: bool = True, batch: int = 0, discount: float = 0.9, seed: int = 0,
    ):  # fmt: skip
        if size not in ("4x4", "8x8") or (episodes is not None and episodes < 1) or steps < 1:
            raise InvalidProblem(
                message("InverseRL", f"size={size!r}, episodes={episodes}, steps={steps}",
                        "the size is '4x4' or '8x8', and there is at least one episode of one step", "Choose others")
            )  # fmt: skip
        env = FrozenLakeEnv(map_name=size, is_slippery=slippery)
        self.mdp = FiniteMDP.from_gymnasium(env, discount)
        self.expert = planning.soft_optimal(self.mdp, gymnasium_rewards(env), temperature).pi
        counts = demonstrations(self.mdp, self.expert, episodes, steps, seed)
        self.objective = DemonstrationLikelihood(counts, regulariser, batch)
        self.graded_at, self.rows = temperature, int(size[0])
        self.x0 = jnp.zeros(self.mdp.n_states)

    def reward(self, x):
        return jnp.broadcast_to(x[:, None], (self.mdp.n_states, self.mdp.n_actions))

    def reward_at(self, x, s, a):
        return x[s]

    def entropy_of_expert(self) -> Float[Array, ""]:
        r"""$-\sum n \log \pi_E$: what no reward can beat but by fitting the noise of finitely many demonstrations."""
        return self.objective.value(jnp.zeros_like(self.x0), self.expert, self)

    def layout(self):
        return GridLayout(self.rows, self.rows, np.argwhere(np.ones((self.rows, self.rows), bool)), LAKE_MOVES)

    def temperature(self):
        return self.graded_at
