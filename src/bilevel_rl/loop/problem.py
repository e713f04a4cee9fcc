"""What every problem offers, whatever its follower is made of: x and its set, how it is graded, drawn and sized."""

# no `from __future__ import annotations`: Equinox reads `AbstractVar` only where annotations are evaluated
import dataclasses
import functools
from collections.abc import Callable
from typing import Any, ClassVar

import equinox as eqx
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.loop import precision

UNREGULARISED = 0.05  # ours: the follower's temperature where results are graded without one
REACH = 10.0  # ours: how far searches go where a box is open, in sizes of x0


@dataclasses.dataclass(frozen=True)
class Optimum:
    """The best x that is known.

    Attributes:
        x: [d].
        value: hyper-objective there.
        grid_value: best value on a grid, before polishing; `value` where there was no grid.
        searched: [d] lower and upper bounds of what a grid covered; None where there was no grid.
    """

    x: np.ndarray
    value: float
    grid_value: float
    searched: tuple[np.ndarray, np.ndarray] | None = None


def _in_words(make: Callable[..., None]) -> Callable[..., None]:
    """A constructor whose attributes must be declared, and which says so."""

    @functools.wraps(make)
    def made(self: Any, *args: Any, **options: Any) -> None:
        try:
            make(self, *args, **options)
        except dataclasses.FrozenInstanceError as error:
            field = str(error).rpartition("field ")[2].strip("'")
            raise InvalidProblem(
                message(f"{type(self).__name__}.{field}", "an attribute that its class does not name",
                        "fields must be declared in the class, so that JAX can trace them",
                        f"Declare it in the class body, as in `{field}: jax.Array`; `{field}: str = eqx.field(static=True)` "
                        "where it is no number")
            ) from error  # fmt: skip

    return made


class Problem(eqx.Module):
    r"""Minimise $\Phi(x)$, the outcome of what a follower learns to do under x.

    An engine derives its own base class, with what its followers need; a problem then fills that in. All methods here
    have defaults.

    Attributes:
        x0: [d] where x starts.

    Example:
        >>> class Bowl(Problem):
        ...     x0: Float[Array, " d"]
        ...
        ...     def measures(self, solver, state, k, tau):
        ...         return {"objective": jnp.sum(state.x**2)}, None
        >>> Bowl(jnp.ones(2)).check()
    """

    x0: eqx.AbstractVar[Float[Array, " d"]]

    def __init_subclass__(cls, **kwargs):
        """A problem is made in 64 bits, whatever the caller's JAX is set to."""
        super().__init_subclass__(**kwargs)
        if "__init__" in cls.__dict__:
            cls.__init__ = precision.double(_in_words(cls.__init__))  # type: ignore[method-assign]

    @precision.double
    def __check_init__(self):
        """x0 may be given as a list or tuple of numbers."""
        x0 = vars(self).get("x0")
        if isinstance(x0, (list, tuple)) and all(isinstance(v, (int, float, np.number)) for v in x0):
            object.__setattr__(self, "x0", jnp.asarray(x0, float))  # fields are frozen by now

    name: ClassVar[str] = "problem"
    kind: ClassVar[str] = "loop"  # of the run folder: which engine it was
    references: ClassVar[tuple[str, ...]] = ()
    x_names: ClassVar[tuple[str, ...]] = ()  # of the d upper variables, for tables and figures

    # -- x ------------------------------------------------------------------------------------------------------------

    def box(self) -> tuple[Float[Array, " d"], Float[Array, " d"]] | None:
        """Lower and upper bounds of x, or None where x is free."""
        return None

    def project(self, x: Float[Array, " d"]) -> Float[Array, " d"]:
        """The nearest point of x's set; by default of `box`."""
        box = self.box()
        return x if box is None else jnp.clip(x, *box)

    def bounded_part(self) -> tuple[Float[Array, " d"], Float[Array, " d"]] | None:
        """The part of the box that searches cover: `REACH` sizes of x0 where a side is open; None where x is free.

        The size of x0 is its distance from the side that is closed, or from 0, and at least 1, in units of x.
        """
        box = self.box()
        if box is None:
            return None
        low, high = (jnp.asarray(bound, float) for bound in box)  # traced where a solver draws its starts
        x0 = jnp.asarray(self.x0, float)
        closed = jnp.where(jnp.isfinite(low), low, jnp.where(jnp.isfinite(high), high, 0.0))
        span = REACH * jnp.maximum(1.0, jnp.abs(x0 - closed))
        return jnp.where(jnp.isfinite(low), low, x0 - span), jnp.where(jnp.isfinite(high), high, x0 + span)

    # -- the follower's problem, in two numbers -----------------------------------------------------------------------

    def temperature(self) -> float:
        """The entropy weight tau at which results are graded, in units of reward."""
        return 0.05

    def follower_temperature(self) -> float:
        """The follower's own tau, above 0, in units of reward: that of every solver which is told none.

        By default that of the grade; where the grade is that of the unregularised problem, 0.05.
        """
        graded = self.temperature()
        return graded if graded > 0 else UNREGULARISED

    def discount_factor(self) -> float:
        """The lower level's gamma; 0 where nothing comes after one decision."""
        return 0.0

    # -- before any work ----------------------------------------------------------------------------------------------

    def check(self, thorough: bool = True) -> None:
        """Raise `InvalidProblem` unless the problem is well posed.

        Args:
            thorough: also what takes seconds, as `bilevel-rl check` does; else only what every run can afford.
        """
        check_start(self)

    def described(self) -> tuple[str, str]:
        """What it is, and what a thorough `check` looked at, for the screen."""
        return f"{self.x0.shape[0]} upper variables", "x0 and its set"

    def accept(self, solver: Any) -> None:
        """Raise `InvalidProblem` where the solver needs something that this problem does not offer."""

    def valueless(self, x: Float[Array, " d"], overflow: bool) -> str | None:
        """Why the follower's problem has no finite value at x, in half a sentence; None where nothing says so.

        Asked once a run has broken, or its grade is NaN.

        Args:
            x: [d] where the run was.
            overflow: whether numbers of the run grew beyond all bounds.
        """
        return None

    # -- how its runs move on -----------------------------------------------------------------------------------------

    def stepper(self) -> Any:
        """A class derived from `loop.stepping.Stepper`, where the problem's world can't be compiled; None elsewhere."""
        return None

    def draws_each(self, solver: Any) -> int | None:
        """Transitions of one iteration of a solver, where that can't be measured by taking some; None elsewhere."""
        return None

    # -- grading ------------------------------------------------------------------------------------------------------

    def measures(self, solver: Any, state: Any, k, tau) -> tuple[dict[str, Array], Any]:
        """What is reported of one state, for grading only: solvers never see it. Traced, and batched over runs.

        Args:
            solver: what made the state.
            state: unbatched.
            k: iteration.
            tau: temperature of grading; the Python number 0 for the unregularised problem.

        Returns:
            Values by key, `"objective"` among them wherever it can be known; and whatever `scene` needs besides.
        """
        return {}, None

    def graded(self) -> bool:
        """Whether `measures` is cheap enough to be called at every record without being asked for."""
        return True

    def best_known(self, tau: float) -> Optimum | None:
        """The best x, where finding it costs less than a run does; None elsewhere."""
        return None

    def size_hint(self) -> int:
        """Bytes that one run may need at once while it is graded or takes a step by the model; 0 for next to none."""
        return 0

    # -- drawing ------------------------------------------------------------------------------------------------------

    def scene(self, x: Float[Array, " d"], found: Any) -> dict[str, Array]:
        """Arrays that draw one run at one record.

        Args:
            x: [d].
            found: what `measures` returned besides its values.
        """
        return {}

    def backdrop(self) -> dict[str, np.ndarray]:
        """Arrays that drawing needs and that do not change during a run."""
        return {}

    # -- searching ----------------------------------------------------------------------------------------------------

    def structured_starts(self) -> Float[Array, "n d"] | None:
        """Points from which a search should begin besides x0, where any are known to be promising."""
        return None


def check_start(problem: Problem) -> None:
    """Raise `InvalidProblem` unless x0 is a finite vector inside x's set."""
    name, x = type(problem).__name__, jnp.asarray(problem.x0)
    if x.ndim != 1 or not x.size or not jnp.issubdtype(x.dtype, jnp.floating) or not bool(jnp.all(jnp.isfinite(x))):
        raise InvalidProblem(
            message(f"{name}.x0", f"{x.dtype}{list(x.shape)}", "it must be a vector [d >= 1] of finite floats",
                    "Set x0 = jnp.array([...], float)")
        )  # fmt: skip
    if bool(jnp.any(jnp.abs(problem.project(x) - x) > 1e-9)):
        raise InvalidProblem(
            message(f"{name}.x0", x.tolist(), "it must lie inside x's feasible set", "Start from problem.project(x0)")
        )
