"""The door for environments of Gymnasium: `Hosted.of` one, and `train` on a host of one's own where that is wanted."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium.vector import AutoresetMode

from bilevel_rl.control.environment import Discrete
from bilevel_rl.control.outside import FAITHFUL, Hosted, Outside
from bilevel_rl.control.problem import ControlProblem
from bilevel_rl.control.solvers.single_loop import SingleLoop
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.host import GymnasiumHost
from bilevel_rl.loop import solve
from bilevel_rl.loop.trace import Trace

__all__ = ["Hosted", "train"]


def train(
    problem: ControlProblem, solver: SingleLoop, host: GymnasiumHost | None = None, *, iterations: int, seed: int = 0,
    x0: Any = None, record_every: int | None = None, tau: float | None = None, folder: str | Path | None = None,
    resume: bool = False, config: dict[str, Any] | None = None,
    on_record: Callable[[int, dict[str, np.ndarray]], None] | None = None,
) -> Trace:  # fmt: skip
    """One run of a single loop in environments of Gymnasium, on a host of one's own where that is wanted; else `loop.solve`.

    States of the hyper-gradient are those of whole episodes: copies are not cut at random (`SingleLoop.cut`).

    Args:
        problem: its `environment` is `Hosted`, or has the host's spaces.
        solver: one follower, one walk: `covariance`, `trajectory`, `backward`, `nested`, `hpgd`, `bc_hg` or `partial_sgd`.
        host: as many copies as the solver has chains; made from the problem's environment when None.
        iterations: steps of every copy; rounded down to whole record intervals.
        seed: of networks and copies.
        x0: [d]; the problem's when None.
        record_every: iterations between records; a hundredth of the run by default.
        tau: temperature of grades; the problem's when None.
        folder: a run folder to write records and checkpoints to.
        resume: go on from the folder's checkpoint. Networks, replay and x are the same to the last bit; environments begin
            new episodes, which a warning says.
        config: what the folder's `run.json` says.
        on_record: called after every record with the iteration and the newest metrics [1].

    Raises:
        InvalidConfig: an estimator that walks chains of its own; a host with another number of copies or other spaces.
        EnvironmentFault: as its kinds say; the folder keeps its last checkpoint, from which `resume` goes on.

    Example:
        >>> from bilevel_rl.control.problems import PendulumShaping
        >>> from bilevel_rl.control.solvers import Covariance
        >>> problem = PendulumShaping(environment=Hosted.of("Pendulum-v1"))
        >>> trace = train(problem, Covariance(chains=2, batch=8, recent=8), iterations=4)
        >>> trace.x.shape
        (1, 5, 4)
    """
    if host is not None:
        _fits(problem, solver, host)
    elif not isinstance(problem.environment, Hosted):
        raise InvalidConfig(
            message("hosted.train", f"the environment {problem.environment.name!r}, which can be compiled",
                    "a host of Gymnasium's environments", "Pass host=..., or solve it with bilevel_rl.loop.solve")
        )  # fmt: skip
    return solve(
        problem, dataclasses.replace(solver, cut=False), iterations=iterations, seed=seed, x0=x0, record_every=record_every,
        tau=tau, folder=folder, resume=resume, config=config, on_record=on_record,
        stepper=partial(Outside, hosts=None if host is None else [host]),
    )  # fmt: skip


def _fits(problem: ControlProblem, solver: SingleLoop, host: GymnasiumHost) -> None:
    e, discrete = problem.environment, isinstance(problem.environment.action, Discrete)
    acts = e.action.n if isinstance(e.action, Discrete) else e.action.size
    wrong = [
        (solver.estimator.other_chains, f"the estimator {solver.estimator.name!r}, which walks chains of its own",
         "one follower walks here", FAITHFUL),
        (host.count != solver.chains, f"{host.count} copies", f"the solver has {solver.chains} chains", "Make them equal"),
        ((host.observation_size, host.action_size) != (e.observation.size, acts)
         or discrete != isinstance(host.action_space, gymnasium.spaces.Discrete),
         f"{host.observation_space} and {host.action_space}", f"the problem's are {e.observation} and {e.action}",
         "Use Hosted.of the same environment"),
        (host.autoreset == AutoresetMode.NEXT_STEP, "a vector environment that resets in the next step",
         "every step must be a transition", "Make it with autoreset_mode=AutoresetMode.SAME_STEP"),
    ]  # fmt: skip
    for found, got, allowed, fix in wrong:
        if found:
            raise InvalidConfig(message("hosted.train", got, allowed, fix))
