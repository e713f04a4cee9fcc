"""The driver of the JAX engines: what a problem and a solver are, and everything that is the same for all of them.

It knows neither tables of states and actions nor environments: `bilevel_rl.finite` stands on it, and so can engines whose
followers are networks. What it computes is 64-bit (`precision`), because fixed points and hyper-gradients are graded to 1e-8
and better; networks keep their own 32 bits by casting what they are given, and the caller's JAX stays as it is.
"""

from bilevel_rl import compiled

compiled.guard()

from bilevel_rl.loop.checking import check_solver  # noqa: E402
from bilevel_rl.loop.driver import solve  # noqa: E402
from bilevel_rl.loop.precision import use_64_bit  # noqa: E402
from bilevel_rl.loop.problem import Optimum, Problem  # noqa: E402
from bilevel_rl.loop.solver import Solver, State  # noqa: E402
from bilevel_rl.loop.trace import Trace  # noqa: E402

__all__ = ["Optimum", "Problem", "Solver", "State", "Trace", "check_solver", "solve", "use_64_bit"]
