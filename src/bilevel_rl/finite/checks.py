"""Is this problem, or this solver, well posed? Run before any work starts, and by `bilevel-rl check`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from bilevel_rl.errors import BilevelError, InvalidProblem, message
from bilevel_rl.finite import oracles
from bilevel_rl.finite.model import entries
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.finite.tables import GridLayout, TableProblem, UpperObjective
from bilevel_rl.loop import precision, whole
from bilevel_rl.loop.problem import Problem

STEP_POINTS = 9  # ours: at so many points between two x is a reward's derivative looked at before it counts as steps


@precision.double
def check_problem(problem: TableProblem, thorough: bool = True) -> None:
    """Raise `InvalidProblem` unless the problem is well posed.

    Always: x0 is a finite vector inside x's set, whose box has its dimension; the temperature is at least 0; the reward
    is [S, A], finite, differentiable and not made of steps; the leader's utility has a number for each pair or state.
    When `thorough`, also at random points: transitions are probabilities, ends pay nothing, the reward's gradient equals
    central differences, `reward_at` agrees with `reward`, a `state_reward` depends on the state alone, `project` is
    idempotent, the objective is finite and its `sample` has the shapes it should.

    Example:
        >>> from bilevel_rl.finite.problems.goal_placement import GoalPlacement
        >>> check_problem(GoalPlacement())
    """
    if not isinstance(problem, TableProblem):
        raise InvalidProblem(
            message("check_problem", type(problem).__name__, "a BilevelProblem is expected",
                    "Return an instance of your subclass of bilevel_rl.finite.BilevelProblem")
        )  # fmt: skip
    name = type(problem).__name__
    _check_parts(problem, name)
    x = jnp.asarray(problem.x0, float)
    _check_set(problem, name, x)
    if _closed(problem):
        _check_closed_form(problem, name)
        return
    told = problem if thorough else _asked(f"{name}.reward", problem.without_equilibrium)
    check_rewards(_asked(f"{name}.reward", _reward, told, x), problem.mdp, f"{name}.reward(x0)")
    # traced alone first: differentiation keeps numbers at hand, and lets branches on x through
    _asked(f"{name}.reward", jax.eval_shape, told.reward, x, allowed="the reward must be differentiable by JAX in x",
           fix="Write it with jax.numpy, without float() or numpy")  # fmt: skip
    slope = _asked(
        f"{name}.reward", _jacobian if thorough else _sums_gradient, told, x,
        allowed="the reward must be differentiable by JAX in x", fix="Write it with jax.numpy, without float() or numpy",
    )  # fmt: skip
    if not np.isfinite(slope).all():
        raise InvalidProblem(
            message(f"{name}.reward", "a gradient with NaN or infinity at x0", "it must be finite",
                    "Guard square roots, logarithms and divisions at zero")
        )  # fmt: skip
    points = _points(problem, 8)
    for point in points if thorough else points[:1]:
        _check_transitions(problem, name, point)
        _check_ends(told, name, point)
    _check_utility(problem, name, x)
    _check_steps(told, name, points, each=thorough)
    if thorough and (spread := _spread(problem)):
        _check_steps(problem, name, [points[0], *spread], each=True)
    if thorough:
        for point in points[:4]:
            _check_point(problem, name, point)


@whole.tried
def _reward(problem: TableProblem, x: jax.Array) -> jax.Array:
    return problem.reward(x)


@whole.tried
def _jacobian(problem: TableProblem, x: jax.Array) -> jax.Array:
    return jax.jacrev(problem.reward)(x)


@whole.tried
def _sums_gradient(problem: TableProblem, x: jax.Array) -> jax.Array:
    return jax.grad(lambda x: problem.reward(x).sum())(x)


@whole.tried
def _projected(problem: TableProblem, x: jax.Array) -> jax.Array:
    return problem.project(x)


@whole.tried
def _transitions(problem: TableProblem, x: jax.Array) -> Any:
    return problem.transitions(x)


@whole.tried
def _bonus(problem: TableProblem, x: jax.Array) -> Any:
    return problem.objective.bonus(x)


def _closed(problem: TableProblem) -> bool:
    """Whether the follower is known in closed form: no table of states and actions, on purpose."""
    return getattr(type(problem), "closed_form", False)


@precision.double
def built(where: str, make: Callable[[], Any]) -> Any:
    """The problem that a user's class or factory makes, with whatever goes wrong said in one sentence.

    Raises:
        InvalidProblem: it raises, or makes no problem.
    """
    try:
        made = make()
        if isinstance(made, Problem):
            return made
        raise InvalidProblem(
            message(where, f"a function that returns {type(made).__name__}", "it must return a problem",
                    "Return an instance of your subclass of bilevel_rl.finite.BilevelProblem")
        )  # fmt: skip
    except BilevelError:
        raise
    except (AttributeError, TypeError, ValueError) as error:
        text = " ".join(str(error).split())
        raise InvalidProblem(
            message(where, f"{type(error).__name__} ({text})", "it must be made without an error",
                    "Mend its __init__, or the function that makes it")
        ) from error  # fmt: skip
    except Exception as error:  # whatever the user's code raises
        raise InvalidProblem(
            message(where, f"{type(error).__name__} ({error})", "it must be made without an error", "Mend the function")
        ) from error


def _asked(where: str, f: Callable, *args: Any, allowed: str = "", fix: str = "") -> Any:
    """f(*args), with whatever a user's method raises said in one sentence."""
    try:
        return f(*args)
    except BilevelError:
        raise
    except Exception as error:  # whatever JAX or the user's code raises
        branches = isinstance(error, jax.errors.TracerBoolConversionError)
        text = str(error).splitlines()[0] if str(error) else "no message"
        if branches:
            text = "a branch on x"
        raise InvalidProblem(
            message(where, f"{type(error).__name__}: {text}", allowed or "it must give its value without an error",
                    "Replace `if` on x by jnp.where, which computes both sides" if branches else fix or "Mend the method")
        ) from error  # fmt: skip


def _check_parts(problem: TableProblem, name: str) -> None:
    """Fields of the right kinds."""
    x0: Any = getattr(problem, "x0", None)
    kind = getattr(x0, "dtype", type(x0).__name__)
    vector = isinstance(x0, (jax.Array, np.ndarray)) and np.ndim(x0) == 1 and np.size(x0) > 0
    if not vector or not jnp.issubdtype(x0.dtype, jnp.floating) or not np.isfinite(x0).all():
        raise InvalidProblem(
            message(f"{name}.x0", f"{kind}{list(np.shape(x0))}" if hasattr(x0, "shape") else repr(x0),
                    "it must be a vector [d] of finite floats", "Set x0 = jnp.array([...], float)")
        )  # fmt: skip
    tau = _asked(f"{name}.temperature", problem.temperature)
    if not _number(tau) or not 0 <= float(tau) < np.inf:
        raise InvalidProblem(
            message(f"{name}.temperature()", tau, "it must be a finite number of at least 0, in units of reward",
                    "Return for instance 0.05; 0 grades the unregularised problem")
        )  # fmt: skip
    own = _asked(f"{name}.follower_temperature", problem.follower_temperature)
    if not _number(own) or not 0 < float(own) < np.inf:
        raise InvalidProblem(
            message(f"{name}.follower_temperature()", own, "it must be a finite number above 0, in units of reward",
                    "Return for instance 0.05, and the temperature of the grade from `temperature`")
        )  # fmt: skip
    if _closed(problem):
        return
    for field, kind in (("mdp", FiniteMDP), ("objective", UpperObjective)):
        if not isinstance(getattr(problem, field, None), kind):
            raise InvalidProblem(
                message(f"{name}.{field}", type(getattr(problem, field, None)).__name__, f"it must be a {kind.__name__}",
                        f"Set self.{field} in __init__")
            )  # fmt: skip
    layout = _asked(f"{name}.layout", problem.layout)
    if layout is not None and not isinstance(layout, GridLayout):
        raise InvalidProblem(
            message(f"{name}.layout()", type(layout).__name__, "it must be a GridLayout or None", "Return GridLayout(...)")
        )


def _number(value: Any) -> bool:
    return isinstance(value, (int, float, np.number, np.ndarray, jax.Array)) and np.size(value) == 1


def _check_set(problem: TableProblem, name: str, x: jax.Array) -> None:
    """A box of x's dimension whose lower bounds lie below the upper ones, and x0 inside x's set."""
    box = _asked(f"{name}.box", problem.box)
    if box is not None:
        pair = isinstance(box, (tuple, list)) and len(box) == 2
        bounds = [b for b in box if isinstance(b, (jax.Array, np.ndarray)) and np.shape(b) == x.shape] if pair else []
        if len(bounds) != 2 or not bool(np.all(np.asarray(bounds[0]) <= np.asarray(bounds[1]))):
            shapes = [list(np.shape(b)) for b in box] if pair else type(box).__name__
            raise InvalidProblem(
                message(f"{name}.box()", f"bounds of shapes {shapes}",
                        f"it must be a pair of arrays [{x.shape[0]}], the lower below the upper",
                        "Return jnp.full_like(self.x0, low), jnp.full_like(self.x0, high); jnp.inf where a side is open")
            )  # fmt: skip
    moved = _asked(f"{name}.project", _projected, problem, x)
    if np.shape(moved) != x.shape or (np.abs(np.asarray(moved) - np.asarray(x)) > 1e-9).any():
        raise InvalidProblem(
            message(f"{name}.x0", x.tolist(), "it must lie inside x's feasible set", "Start from problem.project(x0)")
        )


def _check_transitions(problem: TableProblem, name: str, x: jax.Array) -> None:
    """The MDP under x has the sizes of the problem's own, its rows are probabilities, and it moves what it says it moves."""
    if not problem.moves_transitions and not problem.moves_start:
        return
    mdp = _asked(f"{name}.transitions", _transitions, problem, x)
    where = f"{name}.transitions({x.tolist()})"
    if not isinstance(mdp, FiniteMDP) or (mdp.n_states, mdp.n_actions) != (problem.mdp.n_states, problem.mdp.n_actions):
        raise InvalidProblem(
            message(where, type(mdp).__name__, "it must be an MDP of the same states and actions as `mdp`",
                    "Return self.mdp.with_probabilities(...)")
        )  # fmt: skip
    for word, rows in (("probabilities", mdp.probabilities), ("start", mdp.start)):
        total, least = np.sum(rows, -1), float(np.min(rows))
        off = np.abs(total - 1)
        if not (off <= 1e-8).all() or least < -1e-12:
            at = [int(i) for i in np.argwhere(~(off <= 1e-8))[0]] if off.ndim and not (off <= 1e-8).all() else []
            worst = float(total[tuple(at)]) if at or not total.ndim else 1.0
            raise InvalidProblem(
                message(f"{where}.{word}{at or ''}", f"a row that sums to {worst:.6g}, smallest entry {least:.3g}",
                        "each row must be at least 0 and sum to 1 whatever x is", "Divide by the row's sum, or by a softmax")
            )  # fmt: skip
    if not problem.moves_start and (np.abs(np.asarray(mdp.start) - np.asarray(problem.mdp.start)) > 1e-12).any():
        raise InvalidProblem(
            message(where, "another start distribution than mdp.start", "a problem that moves the start says so",
                    "Set moves_start = True in the class")
        )  # fmt: skip


def _check_utility(problem: TableProblem, name: str, x: jax.Array) -> None:
    """Where f is linear in the visitation, the utility is one number for each pair, or each state."""
    if not problem.objective.linear:
        return
    utility = _asked(f"{name}.objective", jax.eval_shape, problem.objective.bonus, x)
    S, A = problem.mdp.n_states, problem.mdp.n_actions
    if utility.shape not in {(S, A), (S, 1), (1, A)}:  # the last: the same in every state
        raise InvalidProblem(
            message(f"{name}.objective", f"a utility of shape {utility.shape}",
                    f"it must be [S, A] = ({S}, {A}), [1, A] = (1, {A}), or [S] = ({S},)",
                    "Give one number for each state and action, or one for each state")
        )  # fmt: skip


def _check_closed_form(problem: TableProblem, name: str) -> None:
    """Finite, and the derivative is that of central differences, along one direction at x0."""
    tau, x = problem.temperature(), jnp.asarray(problem.x0, float)
    value, gradient = _graded(problem, x, tau)
    _check_finite(name, x, value, gradient)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    ahead, behind = (_graded(problem, x + step * direction, tau)[0] for step in (1e-5, -1e-5))
    central, traced = float(ahead - behind) / 2e-5, float(gradient @ direction)
    if abs(central - traced) > 1e-5 * (1 + abs(traced)):
        raise InvalidProblem(
            message(f"{name}.hyper_objective", f"a derivative {traced:.6g} where central differences give {central:.6g}",
                    "it must be differentiable in x", "Differentiate fixed points by the implicit function theorem")
        )  # fmt: skip


def _check_ends(problem: TableProblem, name: str, x: jax.Array) -> None:
    """Nothing is paid once all is over, at either level."""
    if problem.mdp.ends is None:
        return
    ends, tables = np.asarray(problem.mdp.ends), {"reward": np.asarray(_reward(problem, x))}
    if problem.objective.linear:
        tables["objective.bonus"] = np.asarray(_bonus(problem, x))
    for word, table in tables.items():
        paid = ends[:, None] & (table != 0)
        if paid.any():
            state = int(np.argmax(paid.any(-1)))
            raise InvalidProblem(
                message(f"{name}.{word}[{state}]", f"a payment in a state that is an end, at x = {x.tolist()}",
                        "ends must pay zero", "Pay on the way into the end, or in the state before it")
            )  # fmt: skip


def _check_finite(name: str, x: jax.Array, value: jax.Array, gradient: jax.Array) -> None:
    if not bool(jnp.isfinite(value)) or not bool(jnp.all(jnp.isfinite(gradient))):
        raise InvalidProblem(
            message(f"{name}.objective", f"value {float(value)}, gradient {gradient.tolist()} at {x.tolist()}",
                    "the upper objective and its hyper-gradient must be finite", "Check the objective's formula")
        )  # fmt: skip


@eqx.filter_jit
def _graded(problem: TableProblem, x: jax.Array, tau) -> tuple[jax.Array, jax.Array]:
    return jax.value_and_grad(lambda x: oracles.hyper_objective(problem, x, tau))(x)


def _points(problem: TableProblem, n: int = 3) -> list[jax.Array]:
    x0 = np.asarray(problem.x0, float)
    noise = np.random.default_rng(0).normal(size=(n, x0.shape[0]))
    return [jnp.asarray(x0)] + [_projected(problem, jnp.asarray(x0 + 0.1 * z)) for z in noise]


def _spread(problem: TableProblem, n: int = 2) -> list[jax.Array]:
    """Corners and random points of the box of x, where it has one that is finite."""
    box = problem.box()
    if box is None:
        return []
    low, high = (jnp.asarray(bound, float) for bound in box)
    if not bool(jnp.all(jnp.isfinite(low) & jnp.isfinite(high))):
        return []
    shares = np.random.default_rng(2).uniform(size=(n, len(low)))
    return [problem.project(point) for point in (low, high, *(low + (high - low) * jnp.asarray(s) for s in shares))]


def _check_steps(problem: TableProblem, name: str, points: list[jax.Array], each: bool) -> None:
    """A reward that changes with x while its derivative is zero is made of steps: no gradient method can see it.

    `each` looks at every entry of the table, otherwise one entry with a derivative is enough.
    """
    start, *others = points
    tables = [np.asarray(_reward(problem, point)) for point in points]
    end = int(np.argmax([np.max(np.abs(table - tables[0])) for table in tables[1:]]))
    away = jnp.asarray(np.asarray(others[end]) - np.asarray(start))
    flat = np.ones(tables[0].shape, bool)
    for t in np.linspace(0, 1, STEP_POINTS if each else 3):
        flat &= np.asarray(_slope_along(problem, start, away, jnp.asarray(t))) == 0
    change = np.where(flat if each else flat.all(), np.abs(tables[1 + end] - tables[0]), 0.0)
    if change.max() > 1e-9:
        raise InvalidProblem(
            message(f"{name}.reward",
                    f"a change of {change.max():.3g} between x0 and {others[end].tolist()} with a derivative of "
                    "zero",
                    "the reward must be differentiable in x", "Replace rounding, argmax, thresholds by smooth functions")
        )  # fmt: skip


@whole.tried
def _slope_along(problem: TableProblem, start: jax.Array, away: jax.Array, t: jax.Array) -> jax.Array:
    return jax.jvp(problem.reward, (start + t * away,), (away,))[1]


@whole.tried
def _differences(problem: TableProblem, x: jax.Array, direction: jax.Array, step: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The derivative along a direction, and what central differences give in its place."""
    forward = (problem.reward(x + step * direction) - problem.reward(x - step * direction)) / (2 * step)
    return jax.jvp(problem.reward, (x,), (direction,))[1], forward


@whole.tried
def _reward_by_pairs(problem: TableProblem, x: jax.Array) -> jax.Array:
    S, A = problem.mdp.n_states, problem.mdp.n_actions
    return problem.reward_at(x, *jnp.divmod(jnp.arange(S * A), A))


@whole.tried
def _rows_by_pairs(problem: TableProblem, x: jax.Array) -> jax.Array:
    S, A = problem.mdp.n_states, problem.mdp.n_actions
    return problem.transitions_at(x, *jnp.divmod(jnp.arange(S * A), A))


def _off(one: Any, two: Any) -> float:
    """The largest difference of two arrays; infinite where their shapes differ."""
    one, two = np.asarray(one), np.asarray(two)
    with np.errstate(invalid="ignore"):
        return float(np.max(np.abs(one - two))) if one.shape == two.shape else np.inf


def _check_point(problem: TableProblem, name: str, x: jax.Array) -> None:
    reward = _reward(problem, x)
    check_rewards(reward, problem.mdp, f"{name}.reward({x.tolist()})")
    table = np.asarray(reward)
    direction = jnp.asarray(np.random.default_rng(1).normal(size=x.shape))
    # 32 bits show a derivative to three digits
    step, share = (1e-5, 1e-5) if table.dtype == np.float64 else (1e-2, 1e-2)
    traced, central = map(np.asarray, _differences(problem, x, direction, jnp.asarray(step)))
    if _off(central, traced) > share * (1 + np.max(np.abs(traced))):
        raise InvalidProblem(
            message(f"{name}.reward", f"a derivative that differs from central differences by "
                    f"{_off(central, traced):.3g} at {x.tolist()}",
                    "the reward must be differentiable in x", "Replace rounding, argmax, thresholds by smooth functions")
        )  # fmt: skip
    if _off(_reward_by_pairs(problem, x), table.ravel()) > 1e-9:
        raise InvalidProblem(
            message(f"{name}.reward_at", f"values other than reward(x)[s, a] at {x.tolist()}",
                    "both must describe the same reward", "Make reward_at(x, s, a) equal reward(x)[s, a]")
        )  # fmt: skip
    if problem.moves_transitions and type(problem).transitions_at is not TableProblem.transitions_at:
        rows = np.asarray(_transitions(problem, x).probabilities)
        if _off(_rows_by_pairs(problem, x), rows.reshape(table.size, -1)) > 1e-9:
            raise InvalidProblem(
                message(f"{name}.transitions_at", f"rows other than transitions(x).probabilities[s, a] at {x.tolist()}",
                        "both must describe the same kernel", "Make transitions_at(x, s, a) equal that")
            )  # fmt: skip
    once = _projected(problem, x)
    if _off(_projected(problem, once), once) > 1e-9:
        raise InvalidProblem(
            message(f"{name}.project", "a point that moves when projected twice", "projection must be idempotent",
                    "Return the nearest point of x's set")
        )  # fmt: skip
    spread = float(np.ptp(table, axis=-1).max())
    if problem.state_reward and spread > 1e-9:
        raise InvalidProblem(
            message(f"{name}.reward", f"rewards of one state that differ by {spread:.3g} between its actions",
                    "with state_reward = True a reward depends on the state alone", "Set state_reward = False")
        )  # fmt: skip
    value, gradient = _asked(f"{name}.objective", _graded, problem, x, problem.temperature())
    _check_finite(name, x, value, gradient)


def check_rewards(reward: Array, mdp: FiniteMDP, where: str = "BilevelProblem.reward(x)") -> None:
    """Raise `InvalidProblem` unless the reward table is [S, A] and finite."""
    want = (mdp.n_states, mdp.n_actions)
    if jnp.shape(reward) != want:
        raise InvalidProblem(
            message(where, f"shape {jnp.shape(reward)}", f"it must be [S, A] = {list(want)}",
                    "Broadcast a state reward with `jnp.broadcast_to(r[:, None], (S, A))`")
        )  # fmt: skip
    entries.real_numbers(where, jax.device_get(reward))
