"""A finite problem played by a neural follower: where the two JAX engines meet, and exact oracles judge trajectories.

The follower sees observations of a state and acts; that there is a table behind them it does not know. The hyper-objective,
its gradient and the best x come from the oracles of the finite engine.
"""

from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.control import Box, ControlProblem, Discrete, Environment, Step
from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite import BilevelProblem, oracles, problems
from bilevel_rl.finite.model import sampling

Observed = Literal["one_hot", "coordinates"]


class TableEnvironment(Environment):
    """A finite MDP, seen through observations.

    Attributes:
        mdp: transitions and start.
        seen: [S, o] what is observed in each state.
    """

    mdp: Any
    seen: Float[Array, "S o"]

    name: ClassVar[str] = "table"
    info_names: ClassVar[tuple[str, ...]] = ("state", "action")

    @property
    def observation(self):
        return Box.everywhere(self.seen.shape[1])

    @property
    def action(self):
        return Discrete(self.mdp.n_actions)

    def reset(self, key):
        s = sampling.start_state(self.mdp, jax.random.uniform(key, (1,)))[0].astype(jnp.int32)
        return s, self.seen[s].astype(jnp.float32)

    def step(self, state: Int[Array, ""], action, key):
        u = jax.random.uniform(key, (1,))
        after = sampling.next_state(self.mdp, state[None], action[None], u)[0].astype(jnp.int32)
        ended = jnp.zeros((), bool) if self.mdp.ends is None else self.mdp.ends[after]
        info = jnp.stack([state, action]).astype(jnp.float32)
        nothing, never = jnp.zeros((), jnp.float32), jnp.zeros((), bool)
        return Step(after, self.seen[after].astype(jnp.float32), nothing, ended, never, info)


class Judged(ControlProblem):
    r"""Any finite problem whose objective is linear in the visitation, for neural followers.

    Args:
        table: the finite problem.
        observed: `"one_hot"`, or `"coordinates"` where the problem has positions of its states.

    Example:
        >>> Judged(problems.GoalPlacement()).environment.observation.size
        36
    """

    table: BilevelProblem
    environment: Environment

    name: ClassVar[str] = "judged"
    references: ClassVar[tuple[str, ...]] = ()

    def __init__(self, table: BilevelProblem, observed: Observed = "one_hot"):
        linear = getattr(table, "mdp", None) is not None and table.objective.linear
        if not linear or table.moves_transitions:
            raise InvalidProblem(
                message(f"Judged({table.name})", "no table, an objective that is not linear, or a kernel that x moves",
                        "a neural follower is judged where the leader has a utility of states and actions",
                        "Take GoalPlacement, FourRooms or another with VisitationUtility")
            )  # fmt: skip
        self.table = table
        self.environment = TableEnvironment(table.mdp, _observations(table, observed))

    @property
    def x0(self):
        return self.table.x0

    def box(self):
        return self.table.box()

    def project(self, x):
        return self.table.project(x)

    def temperature(self):
        return self.table.temperature()

    def discount_lower(self):
        return self.table.mdp.discount

    def reward(self, x, features):
        s, a = features.astype(jnp.int32)
        return self.table.reward_at(x, s[None], a[None])[0]

    def utility(self, x, t):
        s, a = t.info.astype(jnp.int32)
        return self.table.objective.bonus_at(x, s[None], a[None])[0]

    def cost(self, x):
        return self.table.objective.cost(x)

    def truth(self, x, tau):
        return oracles.hyper_objective(self.table, x, tau)

    def best_known(self, tau):
        return self.table.best_known(tau)

    def size_hint(self):
        return self.table.size_hint()


def _observations(table: BilevelProblem, observed: Observed) -> Array:
    if observed == "one_hot":
        return jnp.eye(table.mdp.n_states)
    position = getattr(table, "position", None)
    if position is None:
        raise InvalidProblem(
            message(f"Judged({table.name}).observed", "'coordinates'", "its states have no positions", "Take 'one_hot'")
        )
    return 2 * jnp.asarray(np.asarray(position)) - 1


class NeuralGoalPlacement(Judged):
    """Goal placement for a neural follower, judged by the exact oracles of the table behind it.

    Args:
        rows, columns: of the grid.
        observed: `"one_hot"` or `"coordinates"`.
    """

    name: ClassVar[str] = "neural_goal_placement"

    def __init__(self, rows: int = 6, columns: int = 6, observed: Observed = "one_hot"):
        super().__init__(problems.GoalPlacement(rows=rows, columns=columns), observed)


ALL = (NeuralGoalPlacement,)
