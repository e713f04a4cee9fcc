r"""Global search on finite problems: `loop.searching.search`, with starts compared as tables allow.

A solver that samples is compared by samples: along the answer to each x by a model learnt from the transitions of all
starts, or along the follower that each start tracks. Solvers that use the model are compared by the exact hyper-objective.
"""

from __future__ import annotations

from typing import Any

from bilevel_rl.finite.comparing import By, TableComparison
from bilevel_rl.finite.problem import BilevelProblem
from bilevel_rl.loop import precision, searching
from bilevel_rl.loop.problem import Problem
from bilevel_rl.loop.searching import Found
from bilevel_rl.loop.solver import Solver
from bilevel_rl.loop.stages import COMPARING, SETTLING, Shape, Stage, arrange
from bilevel_rl.loop.starts import starting_points
from bilevel_rl.moved import renamed

__all__ = ["COMPARING", "SETTLING", "By", "Found", "Shape", "Stage", "arrange", "search", "starting_points"]
__getattr__ = renamed("bilevel_rl.finite.multistart", plan="arrange")


@precision.double
def search(problem: Problem, solver: Solver, *, by: By = "auto", **options: Any) -> Found:
    """Search for a global optimum with any solver, under one budget for everything.

    Returns and Raises are those of `bilevel_rl.loop.searching.search`, and so are all its arguments but `comparison`.

    Args:
        problem, solver: as for `solve`.
        options: of `bilevel_rl.loop.searching.search`: `starts`, `samples`, `iterations`, `seed`, `folder`, ...
        by: `"model"`, `"follower"`, or `"auto"`: by a model where x does not move the kernel and the transitions suffice to
            learn one, else by the followers. A problem that is no table has no such choice.

    Example:
        >>> from bilevel_rl.finite.problems import GoalPlacement
        >>> from bilevel_rl.finite.solvers import ExactDescent
        >>> found = search(GoalPlacement(), ExactDescent(0.2), starts=16, iterations=960)
        >>> found.value < -0.63, found.mean > -0.5
        (True, False)
    """
    comparison = TableComparison if isinstance(problem, BilevelProblem) else None
    return searching.search(problem, solver, comparison=comparison, by=by, **options)
