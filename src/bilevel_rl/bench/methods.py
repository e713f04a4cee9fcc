"""What the table compares: a solver, its fixed options, and the eight settings that it may choose from.

Every method gets four lengths of step (as travels, see `Task`) times two values of a second number of its own, the same
tuning seeds and the same samples; numbers only, so that tuning is one compiled program. Some that use the model have no
second number, and four settings. The second number of coupled_penalty (the size of w) was chosen after pilot runs on the
leader toy, tax design and four rooms, on other seeds than the table's; those of the others are the ones of
benchmarks/quality.py or the step of their critics. What learns a model needs no step of x to be right, and has few settings.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
from typing import Any

from bilevel_rl.bench.tasks import Task
from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.finite import BilevelProblem, Solver
from bilevel_rl.finite.tuning import samples_per_iteration, with_options
from bilevel_rl.launch import load

TRAVELS = (1.0, 4.0, 16.0, 64.0)
TRAVEL = "travel"
HOLD = "hold share"  # of the iterations, during which x stays
OPTIMISM = "optimism share"  # of the task's reach, where values start
W = "w share"  # of the task's unit of w
HORIZON = 3.0  # ours: trajectories last this many times 1/(1 - gamma), which cuts off a twentieth


@dataclasses.dataclass(frozen=True)
class Contender:
    """One column of the table.

    Attributes:
        label: its name.
        solver: of the library, or `file.py:name`.
        options: by dotted path; what is absent keeps the solver's default.
        second: name and two values of the second number of the grid.
        always: settings that every member of the grid shares.
        travels: lengths of step.
        relative_w: whether its w is in the task's unit.
        plans: whether its follower plans with the model while the leader samples.
        quick: whether `--quick` has it.
    """

    label: str
    solver: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)
    second: tuple[str, tuple[float, float]] | None = None
    always: dict[str, float] = dataclasses.field(default_factory=dict)
    travels: tuple[float, ...] = TRAVELS
    relative_w: bool = False
    plans: bool = False
    quick: bool = False

    def grid(self) -> list[dict[str, float]]:
        """The settings."""
        axes = {TRAVEL: self.travels} | ({} if self.second is None else dict([self.second]))
        return [
            dict(zip(axes, values, strict=True)) | self.always for values in itertools.product(*axes.values())
        ]

    def make(self, task: Task, problem: BilevelProblem) -> Solver:
        """The solver on a task, before tuning: its own options, and what the task says about units."""
        solver = load.find_solver(self.solver).build({})
        mdp = getattr(
            problem, "mdp", None
        )  # followers in closed form have none; what needs one is refused later
        tau, gamma = problem.follower_temperature(), 0.0 if mdp is None else float(mdp.discount)
        scales = hasattr(solver, "scales")
        unit: dict[str, Any] = {"scales.tau.initial" if scales else "tau": tau}
        if scales:  # results are graded at one temperature: it is constant
            unit |= {"scales.tau.power": 0.0, "scales.tau.floor": 0.0}
        for name, value in (
            ("optimism", task.optimism), ("horizon", max(4, math.ceil(HORIZON / (1 - gamma)))),
            ("clip", max(1.0, 10 * task.gradient)), ("bound", max(1.0, 10 * task.gradient)),
            ("reward_bound", 1.0 if mdp is None else _reach(problem)),
        ):  # fmt: skip
            # the recommended solver's clip bounds logits, not the gradient
            if hasattr(solver, name) and not (name == "clip" and self.relative_w):
                unit[name] = value
        if self.solver == "coupled_penalty" and mdp is not None and not problem.objective.linear:
            unit["chains"] = _balanced(problem, solver)
        if self.relative_w:
            unit["scales.w.initial"] = tau / ((1 - gamma) * task.spread)
        return with_options(solver, unit | self.options)

    def settle(self, solver: Solver, setting: dict[str, float], task: Task, iterations: int) -> Solver:
        """The solver under one setting of the grid, for a run of so many iterations."""
        return with_options(solver, _plain(solver, setting, task, iterations))


def _plain(solver: Solver, setting: dict[str, float], task: Task, iterations: int) -> dict[str, float]:
    return dict(_option(solver, name, value, task, iterations) for name, value in setting.items())


def _option(solver: Solver, name: str, value: float, task: Task, iterations: int) -> tuple[str, float]:
    """What one axis of the grid says, as an option of the solver."""
    if name == TRAVEL:
        field, power = _step(solver)
        total = sum((k + 1) ** -power for k in range(iterations))
        return field, value * task.length / (task.gradient * total)
    if name == HOLD:
        return "hold", float(int(value * iterations))
    if name == OPTIMISM:
        return "optimism", value * task.reach
    if name == W:
        return "scales.w.initial", value * float(solver.scales.w.initial)  # type: ignore[attr-defined]
    return name, value


def _step(solver: Solver) -> tuple[str, float]:
    """Field and power of the step of x."""
    if hasattr(solver, "scales"):
        return "scales.zeta.initial", float(solver.scales.zeta.power)
    step = getattr(solver, "step_size", None)
    if hasattr(step, "initial"):
        return "step_size.initial", float(step.power)  # type: ignore[union-attr]
    if step is None:
        raise InvalidConfig(
            message(f"bench suite: {solver.name}", "neither `scales` nor `step_size`", "a solver of the table has one",
                    "Add a field `step_size`")
        )  # fmt: skip
    return "step_size", 0.0


def _balanced(problem: BilevelProblem, solver: Solver) -> int:
    """Chains that draw, the actions beside included, about as many transitions an iteration as a sample of f does."""
    lent = samples_per_iteration(problem, solver) - 2 * solver.chains  # type: ignore[attr-defined]
    return max(16, 2 ** int(math.log2(max(lent, 2) / 2)))


def _reach(problem: BilevelProblem) -> float:
    """Largest reward at the start."""
    return max(1.0, float(abs(problem.reward(problem.x0)).max()))


ALPHA = ("scales.alpha.initial", (0.1, 1.0))
BETA = ("scales.beta.initial", (0.2, 0.5))
SHORT = {"trajectories": 4}
CENTRED = SHORT | {"baseline": "visits"}
LEARNS = {"length": 512, "descents": 10}
ALL: tuple[Contender, ...] = (
    # by samples alone
    Contender("coupled_penalty", "coupled_penalty", {}, (W, (1.0, 10.0)), {HOLD: 0.2, OPTIMISM: 1.0}, relative_w=True,
           quick=True),
    Contender("certainty_equivalence", "certainty_equivalence", LEARNS, ("explore", (0.25, 0.5)), travels=(1.0, 16.0)),
    Contender("certainty_equivalence, 12 starts", "certainty_equivalence", LEARNS | {"starts": 12}, travels=(1.0, 16.0)),
    Contender("penalty_actor_critic", "penalty_actor_critic", {"chains": 32}, ALPHA, relative_w=True, quick=True),
    Contender("nested_penalty", "nested_penalty", {}, ALPHA, relative_w=True),
    Contender("partial_sgd", "partial_sgd", {"chains": 32}, ALPHA),
    Contender("finite_difference", "finite_difference", {"inner": 100}, ALPHA),
    Contender("hpgd", "hpgd", SHORT, BETA, quick=True),
    Contender("hpgd, carried critic", "hpgd", SHORT | {"critic": "sarsa"}, BETA),
    Contender("boltzmann_covariance", "boltzmann_covariance", SHORT, BETA, quick=True),
    # with a control variate that is ours: a fairer rival where x moves the transitions
    Contender("hpgd, our baseline", "hpgd", CENTRED, BETA),
    Contender("boltzmann_covariance, our baseline", "boltzmann_covariance", CENTRED, BETA),
    Contender("f2sa", "f2sa", {}, ALPHA, relative_w=True),
    Contender("sobirl, sampled", "sobirl", {"form": "sampled"}, ("beta", (0.1, 0.3))),
    # the leader samples, the follower plans with the model, as in the studies of HPGD and BC-HG
    Contender("hpgd, planned follower", "hpgd", SHORT | {"follower": "soft_vi"}, BETA, plans=True),
    Contender("boltzmann_covariance, planned follower", "boltzmann_covariance", SHORT | {"follower": "soft_vi"}, BETA,
           plans=True),
    # by the model
    Contender("exact_descent", "exact_descent", quick=True),
    Contender("exact_quasi_newton", "exact_quasi_newton"),
    Contender("exact_penalty", "exact_penalty", {}, ALPHA, relative_w=True),
    Contender("implicit_cg", "implicit_cg"),
    Contender("sobirl", "sobirl", {}, ("rate", (0.3, 1.0))),
    Contender("pbrl_value", "pbrl_value", {}, ALPHA, relative_w=True),
    Contender("pbrl_bellman", "pbrl_bellman", {}, ("scales.w.initial", (0.01, 0.1))),
    Contender("policy_alignment", "policy_alignment", {}, ("alpha", (1.0, 10.0))),
    Contender("amd", "amd"),
    Contender("zero_order", "zero_order", {}, ("radius.initial", (0.05, 0.2))),
)  # fmt: skip


def named(names: tuple[str, ...], quick: bool) -> list[Contender]:
    """Methods by label or by solver, user files as `file.py:solver`; all of them, or the quick ones, by default.

    Raises:
        InvalidConfig: an unknown name.
    """
    if not names:
        return [method for method in ALL if method.quick or not quick]
    found: list[Contender] = []
    for name in names:
        hits = [m for m in ALL if m.label == name] or [m for m in ALL if m.solver == name]
        if not hits and ":" not in name:
            labels = [m.label for m in ALL]
            raise InvalidConfig(
                message(
                    "bilevel-rl bench suite --solvers",
                    repr(name),
                    did_you_mean(name, labels),
                    "Name some of these",
                )
            )
        found += hits or [Contender(name.rpartition(":")[2], name)]
    return found
