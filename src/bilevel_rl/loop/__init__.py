"""The driver of the JAX engines: what a problem and a solver are, and everything that is the same for all of them.

It knows neither tables of states and actions nor environments: `bilevel_rl.finite` stands on it, and so can engines whose
followers are networks. Importing it switches JAX to 64-bit, because fixed points and hyper-gradients are graded to 1e-8
and better; networks keep their own 32 bits by casting what they are given.
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

from bilevel_rl.loop.driver import solve  # noqa: E402
from bilevel_rl.loop.problem import Optimum, Problem  # noqa: E402
from bilevel_rl.loop.solver import Solver, State  # noqa: E402
from bilevel_rl.loop.trace import Trace  # noqa: E402

__all__ = ["Optimum", "Problem", "Solver", "State", "Trace", "solve"]
