"""The compiled pieces of the loop: first states, some iterations of a whole batch of runs, and what broke where."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop import noise
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.solver import Solver, State

NOISE_BYTES = 2**24  # ours: random numbers are made in blocks of at most this size, which stays in cache
BATCH_BYTES = 2**28  # ours: room for what a batch of runs needs at once, by the problem's `size_hint`
# XLA splits an operation over threads by the size of what it reads from: sixteen rows of a table of a megabyte would wake a
# second thread at every step, for more than the rows cost. Steps of sampled solvers are hundreds of such operations; what
# they have to share out is runs. Solvers that use the model work on whole matrices, and keep their threads.
ONE_THREAD = {"xla_disable_hlo_passes": "cpu-parallel-task-assigner"}
FIRST, COMPARING = 2**32 - 1, 2**32 - 2  # folds of a run's key that no iteration uses: first state, comparisons


def stack(solvers: list[Solver], runs: int) -> Solver:
    """One solver whose numbers carry a leading axis [H * runs], setting by setting."""
    static = {jax.tree.structure(s) for s in solvers}
    if len(static) != 1:
        raise InvalidConfig(
            message("solve.solver", f"{len(static)} different structures", "settings of one sweep may differ in numbers "
                    "only, not in options that change the program", "Call solve once for each structure")
        )  # fmt: skip
    return jax.tree.map(lambda *v: jnp.repeat(jnp.stack([jnp.asarray(x, float) for x in v]), runs, axis=0), *solvers)


def run_keys(seed: int, runs: int) -> Array:
    """[runs] keys; run i of a seed has the same one whatever else is in the batch."""
    return jax.vmap(partial(jax.random.fold_in, jax.random.key(seed)))(jnp.arange(runs))


@eqx.filter_jit
def first_states(problem: Problem, solver: Solver, x: Float[Array, "B d"], keys: Array) -> State:
    """The first state of every run."""
    return jax.vmap(lambda s, x, key: s.init(problem, x, jax.random.fold_in(key, FIRST)))(solver, x, keys)


def advance(
    problem: Problem, solver: Solver, states: State, keys: Array, k0: Int[Array, ""], length: int
) -> tuple[State, Bool[Array, " B"]]:
    """`length` iterations of every run from iteration k0; also whether each run is still finite."""
    sampled = noise.size(solver.draws(problem)) > 0
    return (_in_one_thread if sampled else _in_many)(problem, solver, states, keys, k0, length)


def _advance(
    problem: Problem, solver: Solver, states: State, keys: Array, k0: Int[Array, ""], length: int
) -> tuple[State, Bool[Array, " B"]]:
    draws = solver.draws(problem)
    n, batch = noise.size(draws), keys.shape[0]
    block = max(b for b in range(1, length + 1) if length % b == 0 and (b == 1 or b * max(n, 1) * batch * 8 <= NOISE_BYTES))

    def run(solver, state, key):
        def some(state, first):
            ks = first + jnp.arange(block)
            # a key for each iteration: the stream does not depend on blocks, records or the batch
            flat = jax.vmap(lambda k: jax.random.uniform(jax.random.fold_in(key, k), (n,)))(ks)
            return jax.lax.scan(
                lambda s, z: (solver.step(problem, s, z[0], noise.fill(draws, z[1])), None), state, (ks, flat)
            )

        state, _ = jax.lax.scan(some, state, k0 + block * jnp.arange(length // block))
        return state, is_finite(state)

    if batch > 1 and n == 0:  # a solver that uses the model factorises matrices
        return over_runs(lambda each: run(*each), (solver, states, keys), problem)
    if batch > 1:
        return jax.vmap(run)(solver, states, keys)
    # one run alone: the same operations without a batch axis, which costs a third of a step's time
    alone = jax.tree.map(lambda v: v[0], (solver, states, keys))
    return jax.tree.map(lambda v: v[None], run(*alone))


_in_many = eqx.filter_jit(_advance)
# further options go on to jax.jit, which filter_jit's types do not say
_in_one_thread = eqx.filter_jit(_advance, compiler_options=ONE_THREAD)  # type: ignore[call-overload]


def _advance_over(parts: Any, states: State, k0: Int[Array, ""], length: int) -> tuple[State, Bool[Array, " B"]]:
    problem, solver, keys = parts
    return _advance(problem, solver, states, keys, k0, length)


# of solvers with a large memory: the new states are written over the old ones, of which there need not be two
_over = eqx.filter_jit(_advance_over, donate="all-except-first", compiler_options=ONE_THREAD)  # type: ignore[call-overload]


def over_runs(f: Callable, trees: Any, problem: Problem) -> Any:
    """`vmap`, in chunks where what all runs need at once would not fit."""
    batch = jax.tree.leaves(trees)[0].shape[0]
    chunk = max(1, BATCH_BYTES // max(1, problem.size_hint()))
    return jax.vmap(f)(trees) if batch <= chunk else jax.lax.map(f, trees, batch_size=chunk)


def is_finite(state: State) -> Bool[Array, ""]:
    """Whether every number of a state is."""
    leaves = [v for v in jax.tree.leaves(state) if jnp.issubdtype(v.dtype, jnp.floating)]
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(v)) for v in leaves]))


@jax.jit
def keep(new: State, old: State, alive: Bool[Array, " B"]) -> State:
    """The new states of runs that live, the old ones of those that do not."""
    return jax.tree.map(lambda a, b: jnp.where(alive.reshape(alive.shape + (1,) * (a.ndim - 1)), a, b), new, old)


class Stepper:
    """How a batch of runs moves on: in one compiled program. An engine whose worlds step outside it derives its own.

    Args:
        problem, solver: the solver's numbers carry a leading axis of runs.
        keys: [B] of the runs.
    """

    def __init__(self, problem: Problem, solver: Solver, keys: Array):
        self.problem, self.solver, self.keys = problem, solver, keys

    def first(self, x: Float[Array, "B d"]) -> State:
        """The first state of every run."""
        return first_states(self.problem, self.solver, x, self.keys)

    def resumed(self, k: int) -> None:
        """Called once, before the first `advance` of a run that goes on from a checkpoint of iteration k."""

    def hold(self, states: State, k0: int, length: int) -> Callable[[State], State]:
        """What makes these states again from those that `advance` writes over them.

        Of a large replay only the rows are copied that the interval overwrites.
        """
        ring = self.solver.ring(states)
        if ring is None:
            return lambda new: states
        C = ring.rows.shape[1]
        lost = np.arange(k0 * ring.each, (k0 + length) * ring.each)[-C:] % C
        rest = jax.tree.map(jnp.copy, self.solver.with_ring(states, ring.rows[:, :0]))
        rows = ring.rows[:, lost]

        def back(new: State) -> State:
            after = self.solver.ring(new)
            assert after is not None
            return self.solver.with_ring(rest, after.rows.at[:, lost].set(rows))

        return back

    def advance(self, states: State, k0: int, length: int) -> tuple[State, Bool[Array, " B"]]:
        """`length` iterations of every run from iteration k0; also whether each run is still finite.

        States with a replay (`Solver.ring`) are written over: `hold` them where they are still needed.
        """
        if self.solver.ring(states) is None:
            return advance(self.problem, self.solver, states, self.keys, jnp.array(k0), length)
        return _over((self.problem, self.solver, self.keys), states, jnp.array(k0), length)

    def drawn(self, states: State) -> dict[str, np.ndarray]:
        """Arrays [1, ...] that draw run 0 at its end, where its world is not compiled; else `Problem.scene` draws it."""
        return {}

    def cause(self, states: State, k0: int, length: int, i: int) -> Broken:
        """Why run i broke in the interval that began with these states."""
        return cause(self.problem, self.solver, states, self.keys, k0, length, i)

    def close(self) -> None:
        """Give back what it holds."""


def stepper(problem: Problem, solver: Solver, keys: Array) -> Stepper:
    """The problem's own, else the compiled one."""
    return (problem.stepper() or Stepper)(problem, solver, keys)


class Broken(NamedTuple):
    """Why a run broke.

    Attributes:
        where: run and iteration.
        text: a sentence.
        overflow: whether numbers became infinite, rather than NaN alone.
    """

    where: str
    text: str
    overflow: bool


def broken(state: State, where: str) -> Broken | None:
    """The first number of one state that is not finite, in a sentence; None where all are."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(state):
        bad = np.argwhere(~np.isfinite(np.asarray(leaf, float)))
        if bad.size:
            name = jax.tree_util.keystr(path).lstrip(".")
            place = f"{name}{bad[0].tolist()}" if bad.shape[1] else name
            said = message(
                where, f"{np.asarray(leaf)[tuple(bad[0])]} in {place}",
                "every quantity must stay finite; the state before it is kept",
                "Lower the step sizes (zeta, alpha, beta) or raise w and tau; `bilevel-rl plan` proposes values",
            )  # fmt: skip
            return Broken(where, said, any(np.isinf(np.asarray(leaf, float)).any() for leaf in jax.tree.leaves(state)))
    return None


def cause(problem: Problem, solver: Solver, states: State, keys: Array, k0: int, length: int, i: int) -> Broken:
    """Run the fatal interval of run i again, one iteration at a time, and name what broke first."""
    pick = partial(jax.tree.map, lambda v: v[i : i + 1])
    one, state, key = pick(solver), pick(states), keys[i : i + 1]
    for k in range(k0, k0 + length):
        new, finite = advance(problem, one, state, key, jnp.array(k), 1)
        said = None if bool(finite[0]) else broken(jax.tree.map(lambda v: v[0], new), f"run {i}, iteration {k}")
        if said is not None:
            return said
        state = new
    where = f"run {i}, iterations {k0} to {k0 + length}"
    return Broken(where, f"{where}: not finite", False)
