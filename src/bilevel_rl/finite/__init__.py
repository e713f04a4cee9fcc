"""Finite MDPs in JAX: planning, exact oracles, sampling, problems, solvers.

Importing this package switches JAX to 64-bit: fixed points and hyper-gradients are graded to 1e-8 and better.
"""

import os

# jaxlib 0.10 deadlocks on machines with few cores: a batched LAPACK call waits for a thread of the pool it runs in, and
# as many such calls as there are threads wait for ever. XLA sizes that pool by NPROC, read when its backend starts; 16
# threads are more than we ever have solves in flight, and cost nothing measurable.
os.environ.setdefault("NPROC", str(max(16, os.cpu_count() or 1)))

import jax

jax.config.update("jax_enable_x64", True)

from bilevel_rl import compiled  # noqa: E402

compiled.guard()

from bilevel_rl.finite.model.mdp import FiniteMDP, gymnasium_rewards  # noqa: E402
from bilevel_rl.finite.problem import BilevelProblem, GridLayout, UpperObjective  # noqa: E402
from bilevel_rl.finite.solver import Solver, State, Trace, solve  # noqa: E402

__all__ = [
    "BilevelProblem", "FiniteMDP", "GridLayout", "Solver", "State", "Trace", "UpperObjective", "gymnasium_rewards",
    "solve",
]  # fmt: skip
