"""What the benchmarks of a transition's cost share: a run of `coupled_penalty` that goes on when it is called."""

from __future__ import annotations

import time
from typing import Any

import jax
import jax.numpy as jnp

from bilevel_rl.finite.solvers import CoupledPenalty
from bilevel_rl.loop import stepping


class Going:
    """A run that is compiled and on its way: called, it goes on for an interval and says what a transition took.

    Args:
        problem: of the run.
        interval: iterations of a call.

    Attributes:
        state: the solver's, of one run.
    """

    def __init__(self, problem: Any, interval: int) -> None:
        solver, keys = stepping.stack([CoupledPenalty().on(problem)], 1), stepping.run_keys(0, 1)
        self._run = stepping.stepper(jax.tree.map(jnp.asarray, problem), solver, keys)
        self.state, self._k, self._interval = self._run.first(problem.x0[None]), 0, interval
        for _ in range(2):  # the second call's state has other types than the first one: it compiles too
            self()

    def __call__(self) -> float:
        """Processor seconds of a transition."""
        before, began = float(self.state.samples[0]), time.process_time()
        self.state, _ = jax.block_until_ready(self._run.advance(self.state, self._k, self._interval))
        spent = time.process_time() - began
        self._k += self._interval
        return spent / (float(self.state.samples[0]) - before)
