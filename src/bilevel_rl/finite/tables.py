"""What a problem with tables is made of: an MDP, a reward shaped by x, an upper objective, and a layout for drawing.

`oracles` and `checks` are functions of it; `bilevel_rl.finite.problem.BilevelProblem`, which one derives from, adds them.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.loop.noise import Draws
from bilevel_rl.loop.problem import Problem


class ObjectiveSample(NamedTuple):
    r"""One unbiased estimate of the gradients of $f(x, \pi_\theta)$.

    Attributes:
        value: an unbiased estimate of f.
        grad_x: [d] $g_x$, at fixed policy.
        grad_theta: [S, A] $g_\theta$, with respect to the softmax logits.
        transitions: environment transitions that were drawn.
        seen: [3, M] states, actions and next states of those whose end was seen, from which critics may learn; or None.
    """

    value: Float[Array, ""]
    grad_x: Float[Array, " d"]
    grad_theta: Float[Array, "S A"]
    transitions: Int[Array, ""]
    seen: Int[Array, "3 M"] | None = None


class UpperObjective(eqx.Module):
    r"""The upper objective $f(x, \pi)$, minimised over x through $\Phi(x) = f(x, \pi^*(x))$.

    Two kinds. *Linear in the visitation*: $f = -E_{s \sim d^\pi, a \sim \pi}[u_x(s,a)] + c(x)$; give `bonus` and `cost`
    and everything else follows. *Otherwise*: give `value`, and `sample` for the sample-based solvers.
    """

    @abc.abstractmethod
    def value(self, x: Float[Array, " d"], pi: Float[Array, "S A"], problem: TableProblem) -> Float[Array, ""]:
        """Exact $f(x, \\pi)$; differentiable in x and pi."""

    def bonus(self, x: Float[Array, " d"]) -> Float[Array, "S A"] | None:
        """Utility $u_x$ [S, A] when f is linear in the visitation, else None."""
        return None

    def bonus_at(self, x, s: Int[Array, " N"], a: Int[Array, " N"]) -> Float[Array, " N"]:
        """`bonus(x)[s, a]`; override it where the whole table costs too much."""
        utility = self.bonus(x)
        assert utility is not None, "asked of objectives that are linear in the visitation only"
        return utility[s, a]

    def cost(self, x: Float[Array, " d"]) -> Float[Array, ""]:
        """The part $c(x)$ of a linear objective that does not depend on the policy."""
        return jnp.zeros(())

    def visited_value(self, x: Float[Array, " d"], visits: Float[Array, "S A"]) -> Float[Array, ""]:
        """A linear f when states and actions are visited so often, $c(x) - \\sum d(s,a)\\,u_x(s,a)$; differentiable in x."""
        utility = self.bonus(x)
        assert utility is not None, "asked of objectives that are linear in the visitation only"
        return self.cost(x) - jnp.sum(visits * utility)

    def linear_value(
        self, x: Float[Array, " d"], s: Int[Array, " N"], a: Int[Array, " N"],
        over: Callable[[Float[Array, " N"]], Array] = jnp.mean,
    ) -> Float[Array, ""]:  # fmt: skip
        """An estimate of a linear f from N pairs of the follower, $c(x)$ less the utility over them; differentiable in x.

        Args:
            over: what makes one number of the [N] utilities; their mean, or a weighted sum.
        """
        return self.cost(x) - over(self.bonus_at(x, s, a))

    @property
    def linear(self) -> bool:
        """Whether f is linear in the visitation."""
        return type(self).bonus is not UpperObjective.bonus

    def draws(self, problem: TableProblem) -> Draws:
        """Uniform numbers that one call of `sample` consumes: how many, or shapes by name."""
        return 0

    def sample(self, x, pi: Float[Array, "S A"], problem: TableProblem, noise: Any) -> ObjectiveSample:
        """Unbiased estimates of f's gradients, from `draws(problem)` filled with uniform numbers.

        The default differentiates `value` exactly: right where f is known in closed form given the policy.
        """

        def of(x, logits):
            return self.value(x, jax.nn.softmax(logits), problem)

        value, (g_x, g_theta) = jax.value_and_grad(of, argnums=(0, 1))(x, jnp.log(pi))
        return ObjectiveSample(value, g_x, g_theta, jnp.zeros((), int))


@dataclasses.dataclass(frozen=True, eq=False)
class GridLayout:
    """Where the states of a grid lie, for drawing. Equal where all its numbers are: compiled programs compare problems.

    Attributes:
        rows, columns: size of the grid.
        cells: [S, 2] row and column of each state.
        arrows: [A, 2] step in rows and columns that each action means; (0, 0) draws no arrow.
        letters: the map, a word a row as Gymnasium writes it ("SFFF"); "F" and blanks are drawn as nothing. Empty: no map.
        walls: pairs of neighbouring cells that a wall divides, as (row, column, row, column).

    Several states may lie in one cell, as a taxi's with and without a passenger do.
    """

    rows: int
    columns: int
    cells: np.ndarray
    arrows: np.ndarray
    letters: tuple[str, ...] = ()
    walls: tuple[tuple[int, int, int, int], ...] = ()

    def _key(self) -> tuple[Any, ...]:
        arrays = (np.asarray(self.cells).tobytes(), np.asarray(self.arrows).tobytes())
        return self.rows, self.columns, *arrays, self.letters, self.walls

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GridLayout) and self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())


@dataclasses.dataclass(frozen=True, eq=False)
class GraphLayout:
    """Where the states of a network lie, for drawing. Without one, places follow from how far a state is from the start.

    Attributes:
        places: [S, 2] across and upwards, in any unit.
    """

    places: np.ndarray

    def __eq__(self, other: object) -> bool:
        return isinstance(other, GraphLayout) and np.array_equal(self.places, other.places)

    def __hash__(self) -> int:
        return hash(np.asarray(self.places).tobytes())


class TableProblem(Problem):
    r"""Minimise $\Phi(x) = f(x, \pi^*(x))$ where $\pi^*(x)$ is optimal for the reward $r_x$.

    Attributes:
        mdp: transitions, start, discount.
        objective: f.
        x0: [d] where x starts.
    """

    mdp: FiniteMDP
    objective: UpperObjective
    x0: Float[Array, " d"]

    kind: ClassVar[str] = "finite"
    state_reward: ClassVar[bool] = False  # whether r_x depends on the state alone: sampled estimators then use it
    mean_field: ClassVar[bool] = False  # whether rewards depend on what a population of followers does
    state_names: ClassVar[tuple[str, ...]] = ()  # of the S states, for tables and pictures
    action_names: ClassVar[tuple[str, ...]] = ()  # of the A actions
    moves_start: ClassVar[bool] = False  # whether x changes the start distribution (`FiniteMDP.with_start`)

    @abc.abstractmethod
    def reward(self, x: Float[Array, " d"]) -> Float[Array, "S A"]:
        """The lower level's reward table $r_x$, differentiable in x."""

    def faced(self, x: Float[Array, " d"], tau) -> Float[Array, "S A"]:
        """The reward that the follower faces at its answer to x; another than `reward` where it depends on the answer."""
        return self.reward(x)

    def without_equilibrium(self) -> TableProblem:
        """What a quick check looks at: the problem itself, or a simpler one where `reward` solves for an equilibrium."""
        return self

    def reward_at(self, x: Float[Array, " d"], s: Int[Array, " N"], a: Int[Array, " N"]) -> Float[Array, " N"]:
        """`reward(x)[s, a]` for N state-action pairs; override it where the whole table costs too much."""
        return self.reward(x)[s, a]

    def transitions(self, x: Float[Array, " d"]) -> FiniteMDP:
        """The MDP under x: override it when x also moves the probabilities or the start (`with_probabilities`)."""
        return self.mdp

    def penalised_reward(self, x: Float[Array, " d"], w: Any) -> Float[Array, "S A"]:
        """$r_x + (1-\\gamma)\\,w\\,u_x$: what the penalised follower earns where f is linear in the visitation.

        Args:
            w: penalty constant, in units of reward / objective.
        """
        utility = self.objective.bonus(x)
        assert utility is not None, "asked of objectives that are linear in the visitation only"
        return self.reward(x) + (1 - self.mdp.discount) * w * utility

    def transitions_at(self, x: Float[Array, " d"], s: Int[Array, " N"], a: Int[Array, " N"]) -> Float[Array, "N K"]:
        """`transitions(x).probabilities[s, a]`; override it where the whole table costs too much."""
        return self.transitions(x).probabilities[s, a]

    def sampled(self, x: Float[Array, " d"]) -> FiniteMDP:
        """The MDP under x as chains draw from it, a row at a time where `transitions_at` says how."""
        own = type(self).transitions_at is not TableProblem.transitions_at
        if not own or not self.moves_transitions or self.moves_start:
            return self.transitions(x)
        base = {field.name: getattr(self.mdp, field.name) for field in dataclasses.fields(FiniteMDP)}
        return DrawnMDP(**base, problem=self, x=x)

    def layout(self) -> GridLayout | GraphLayout | None:
        """How to draw the states, if they lie on a grid or have places; small problems without are drawn as a network."""
        return None

    def marker(self, x: Float[Array, " d"]) -> Float[Array, " 2"] | None:
        """Row and column at which x itself is drawn on the layout, if x is a place."""
        return None

    @property
    def moves_transitions(self) -> bool:
        """Whether x changes the transition probabilities."""
        return type(self).transitions is not TableProblem.transitions


class DrawnMDP(FiniteMDP):
    """The MDP under x of which rows are made when they are asked for; to draw from, not to plan with.

    Attributes:
        problem, x: what makes the rows.
    """

    problem: TableProblem = eqx.field(kw_only=True)
    x: Float[Array, " d"] = eqx.field(kw_only=True)

    def rows(self, s, a):
        return self.problem.transitions_at(self.x, s, a)
