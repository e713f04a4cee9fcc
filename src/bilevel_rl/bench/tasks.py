"""What the table solves: a problem, its budget, and the units in which every solver's steps are measured."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.finite import BilevelProblem
from bilevel_rl.launch import load


@dataclasses.dataclass(frozen=True)
class Task:
    r"""One row of the table.

    The units are given to all solvers alike, so that no grid knows a problem better than another's: a setting of a step
    is a *travel* T, and stands for the $\zeta_0$ with $G \sum_k \zeta_k = T \ell$. Both are round numbers: $\ell$ the width
    of x's set or of its start, G the median of $|\nabla\Phi|$ over random x.

    Attributes:
        name: label of the row.
        problem: of the library, or `file.py:name`.
        options: of its constructor.
        samples: transitions of a run.
        iterations: of solvers that use the model and no samples.
        length: $\ell$, in units of x.
        gradient: G, in units of the objective over those of x.
        spread: by how much the upper objective prefers one action to another; $w_0 = \tau / ((1-\gamma)\,\text{spread})$.
        optimism: where values start, for solvers that have such an option: 1 where the reward is rare.
        reach: the largest value of the follower where values that start there are worth a try, else 0.
        start: `"own"`, the problem's x0, or `"normal"`, x drawn from N(0, I) afresh for every run, as the studies do.
        records: how often a run is graded.
        basins: whether the start decides where a local method ends: such tasks are also searched from many starts.
        quick: whether `--quick` has it.
        says: one clause on what it is.
    """

    name: str
    problem: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    samples: int = 128_000
    iterations: int = 100
    length: float = 1.0
    gradient: float = 1.0
    spread: float = 1.0
    optimism: float = 0.0
    reach: float = 0.0
    start: str = "own"
    records: int = 20
    basins: bool = False
    quick: bool = False
    says: str = ""

    def make(self) -> BilevelProblem:
        """The problem."""
        return load.find_problem(self.problem).build(self.options)

    def starts(self, problem: BilevelProblem, count: int, seed: int) -> Float[Array, "N d"]:
        """Where runs start: run i of a seed starts at the same x for every solver."""
        if self.start == "own":
            return jnp.tile(problem.x0, (count, 1))
        keys = [jax.random.fold_in(jax.random.key(seed), 2**30 + i) for i in range(count)]
        drawn = jnp.stack([jax.random.normal(key, problem.x0.shape) for key in keys])
        return jax.vmap(problem.project)(drawn)


# Budgets: ours, such that the whole table takes about an hour on one core; smaller than those of the studies. The units are
# measured (`measure` below, rounded), but for the leader toy's G: its |grad Phi| runs from 0 to 40, most of the box being
# flat, and G = 10 was set after pilot runs of coupled_penalty and hpgd, as were reach = 100 and the hold share of .2.
ALL: tuple[Task, ...] = (
    Task("goal placement", "goal_placement", samples=128_000, gradient=0.2, spread=1.0, basins=True, quick=True,
         says="a goal in a 6 x 6 grid"),
    Task("four rooms", "four_rooms", samples=400_000, length=5.0, gradient=0.1, spread=57.0, optimism=1.0, reach=1.0,
         start="normal", records=10, basins=True, says="A: penalties on 104 cells, two contexts, temperature .001, price 1"),
    Task("four rooms, warm", "four_rooms", {"temperature": 0.005}, samples=400_000, length=5.0, gradient=0.07, spread=60.0,
         optimism=1.0, reach=1.0, start="normal", records=10, basins=True, says="A at temperature .005"),
    Task("one-goal four rooms", "one_goal_four_rooms", samples=400_000, length=5.0, gradient=0.01, spread=55.0,
         optimism=1.0, reach=1.0, start="normal", records=10, basins=True, says="B: one goal, price 5, temperature .001"),
    Task("one-goal four rooms, warm", "one_goal_four_rooms", {"temperature": 0.005}, samples=400_000, length=5.0,
         gradient=0.01, spread=55.0, optimism=1.0, reach=1.0, start="normal", records=10, basins=True,
         says="B at temperature .005"),
    Task("leader toy", "leader_toy", samples=1_000_000, length=3.0, gradient=10.0, spread=75.0, reach=100.0, basins=True,
         records=10, quick=True,
         says="F: a leader with a policy, R = 1"),
    Task("leader toy, gain 2", "leader_toy", {"gain": 2.0, "leader_discount": 1.0}, samples=1_000_000,
         length=3.0, gradient=10.0, spread=120.0, reach=100.0, basins=True, records=10, says="F with R = 2, undiscounted"),
    Task("synthetic", "synthetic", samples=100_000, length=10.0, gradient=14.0, spread=6.0, start="normal",
         says="G: a random MDP, 100 dimensions"),
    Task("moving kernel", "random_mdp", {"states": 100, "features": 5, "moving": True}, samples=200_000, length=2.0,
         gradient=0.3, spread=3.5, records=10, says="a random MDP of 100 states whose kernel moves with x"),
    Task("tax design", "small_tax_design", samples=200_000, length=1.0, gradient=40.0, spread=78.0, records=8,
         says="C on a coarser grid: taxes for two kinds of workers"),
    Task("preference learning", "preference_learning", samples=50_000, length=3.0, gradient=0.3, spread=0.5, records=10,
         says="a reward learnt from a judge's choices between what its own optimal policy does, on three states"),
    Task("thermal control", "thermal_control", iterations=300, length=1.0, gradient=100.0,
         says="D: a linear-quadratic follower, exact"),
    Task("linear leader", "linear_leader", iterations=300, length=1.0, gradient=1.0,
         says="E: a leader with a linear policy, its follower exact"),
)  # fmt: skip


def measure(problem: BilevelProblem, count: int = 16) -> dict[str, float]:
    """G and the spread of a problem, from which a task's round numbers were taken; and the largest gradient."""
    from bilevel_rl.finite import multistart, oracles, tuning

    tau = problem.temperature()
    slope = jax.jit(lambda x: oracles.hyper_gradient(problem, x, tau))
    norms = [float(jnp.linalg.norm(slope(x))) for x in multistart.starting_points(problem, count)]
    return {
        "gradient": float(np.median(norms)), "largest": max(norms), "spread": tuning.utility_spread(problem, tau),
    }  # fmt: skip


def named(names: tuple[str, ...], quick: bool) -> list[Task]:
    """Tasks by name (spaces or underscores), user files as `file.py:problem`; all of them, or the quick ones, by default.

    Raises:
        InvalidConfig: an unknown name.
    """
    have = {task.name.replace(" ", "_"): task for task in ALL if known(task)}
    if not names:
        return [task for task in have.values() if task.quick or not quick]
    found = []
    for name in names:
        key = name.replace(" ", "_")
        if key not in have and ":" not in name:
            raise InvalidConfig(
                message(
                    "bilevel-rl bench suite --problems",
                    repr(name),
                    did_you_mean(key, have),
                    "Name some of these",
                )
            )
        found.append(have.get(key) or Task(name.rpartition(":")[2], name))
    return found


def known(task: Task) -> bool:
    """Whether this version has the problem."""
    return ":" in task.problem or task.problem in load.problem_classes()


def best_known(file: Path) -> dict[str, dict[str, Any]]:
    """Task -> `{"value", "source"}` as committed, empty where there is no file."""
    return json.loads(file.read_text()) if file.exists() else {}
