"""A game of three states whose leader has a policy: it must threaten just often enough."""

from __future__ import annotations

from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.finite.model.game import Game
from bilevel_rl.finite.objectives.leader_return import LeaderReturn
from bilevel_rl.finite.problem import BilevelProblem

HOME, LEFT, RIGHT = 0, 1, 2


class LeaderToy(BilevelProblem):
    r"""States home (0), left (1) and right (2); the follower has three actions, the leader acts at left only.

    At home the follower stays, goes left or goes right, and earns 1 if it goes. At left, unless the leader punishes, it
    goes home, stays, or goes right, the last of which pays it R; if the leader punishes it pays 1 and is sent home. From
    right, action 0 leads home. The leader earns 1 each time the follower goes left, and chooses the probability to
    punish $\sigma(x)$, without which the follower would take R and come back late, and with too much of which it would not
    go left. Neither sees the other's action of the same step (published optima are those of this order of play, not of a
    follower that sees it):

    $$\Phi(x) = -E\Big[\sum_{t<150} \gamma_U^t\, 1\{s_t = \text{home}, a_t = 1\}\Big]$$

    With R = 1 and $\gamma_U = .99$ the best is -27.26 at $\sigma(x) = .158$, with R = 2 and $\gamma_U = 1$ -59.48 at .491.

    Args:
        gain: R.
        leader_discount: $\gamma_U$.
        horizon: steps of the leader's return.
        discount: of the follower, which plans without end.
        observed: whether the follower sees the leader's action before its own.
        trajectories: of an estimate of the leader's return.
        x0: logit to start from.

    References:
        DiscreteToy4 of the BC-HG study. The optima are tested to the digits above.
    """

    game: Game
    pay: Float[Array, "S B A"]

    name: ClassVar[str] = "leader_toy"
    references: ClassVar[tuple[str, ...]] = ("bchg2026",)

    def __init__(
        self, gain: float = 1.0, leader_discount: float = 0.99, horizon: int = 150, discount: float = 0.99,
        observed: bool = False, trajectories: int = 4, x0: float = 0.0,
    ):  # fmt: skip
        P, pay = np.zeros((3, 2, 3, 3)), np.zeros((3, 2, 3))
        P[HOME, :, [0, 1, 2], [HOME, LEFT, RIGHT]] = 1
        pay[HOME, :, 1:] = 1
        P[LEFT, 0, [0, 1, 2], [HOME, LEFT, RIGHT]] = 1
        pay[LEFT, 0, 2] = gain
        P[LEFT, 1, :, HOME] = 1
        pay[LEFT, 1] = -1
        P[RIGHT, :, [0, 1, 2], [HOME, RIGHT, RIGHT]] = 1
        self.game = Game.from_dense(P, [1.0, 0.0, 0.0], discount, observed)
        self.mdp = self.game.mdp
        self.pay = jnp.asarray(pay)
        went_left = np.zeros((3, 2, 3))
        went_left[HOME, :, 1] = 1
        u = self.game.table(jnp.asarray(went_left), jnp.full((3, 2), 0.5))
        self.objective = LeaderReturn(u, horizon, leader_discount, trajectories)
        self.x0 = jnp.array([x0], float)

    def leader(self, x: Float[Array, " d"]) -> Float[Array, "S B"]:
        r"""$\phi_x(b|s)$: the leader's action matters at left only, elsewhere it is drawn evenly."""
        punish = jnp.array([0.5, 0.0, 0.5]).at[LEFT].set(jax.nn.sigmoid(x[0]))
        return jnp.stack([1 - punish, punish], axis=1)

    def reward(self, x):
        return self.game.table(self.pay, self.leader(x))

    def transitions(self, x):
        return self.game.under(self.leader(x))

    def box(self):
        return jnp.array([-6.0]), jnp.array([6.0])
