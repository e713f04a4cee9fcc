r"""Global search on finite problems: `loop.searching.search`, with starts compared as tables allow.

A solver that samples is compared by samples: along the answer to each x by a model learnt from the transitions of all
starts, or along the follower that each start tracks. Solvers that use the model are compared by the exact hyper-objective.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from bilevel_rl.finite.comparing import By, TableComparison
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.loop import searching
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.searching import Found
from bilevel_rl.loop.solver import Solver
from bilevel_rl.loop.stages import COMPARING, SETTLING, Shape, Stage, plan
from bilevel_rl.loop.starts import starting_points

__all__ = ["COMPARING", "SETTLING", "By", "Found", "Shape", "Stage", "plan", "search", "starting_points"]


def search(
    problem: Problem,
    solver: Solver,
    *,
    starts: int = 64,
    samples: int | None = None,
    iterations: int | None = None,
    eta: int = 4,
    stages: int | None = None,
    continuation: float = 1.0,
    comparing: float = COMPARING,
    settling: float = SETTLING,
    by: By = "auto",
    spread: float = 1.0,
    seed: int = 0,
    tau: float | None = None,
    x0: Any = None,
    folder: str | Path | None = None,
    resume: bool = False,
    config: dict[str, Any] | None = None,
    on_progress: Callable[[int, int], None] | None = None,
) -> Found:
    """Search for a global optimum with any solver, under one budget for everything.

    Args, Returns and Raises are those of `bilevel_rl.loop.searching.search`, but for

    Args:
        by: `"model"`, `"follower"`, or `"auto"`: by a model where x does not move the kernel and the transitions suffice to
            learn one, else by the followers. A problem that is no table has no such choice.

    Example:
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> from bilevel_rl.finite.solvers import ExactDescent
        >>> found = search(GoalPlacement(), ExactDescent(0.2), starts=16, iterations=960)
        >>> found.value < -0.63, found.mean > -0.5
        (True, False)
    """
    return searching.search(
        problem, solver, starts=starts, samples=samples, iterations=iterations, eta=eta, stages=stages,
        continuation=continuation, comparing=comparing, settling=settling, spread=spread, seed=seed, tau=tau, x0=x0,
        comparison=TableComparison if isinstance(problem, BilevelProblem) else None, by=by, folder=folder,
        resume=resume, config=config, on_progress=on_progress,
    )  # fmt: skip
