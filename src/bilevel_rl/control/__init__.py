"""Neural followers in environments: a leader shapes what a learning agent is paid, from trajectories alone.

JAX, on the driver of `bilevel_rl.loop`, whose own numbers are 64-bit; environments and networks keep their 32 bits, and so
does the caller's JAX.
"""

from bilevel_rl import loop as loop
from bilevel_rl.control.environment import Box, Discrete, Environment, Step, check_environment
from bilevel_rl.control.problem import ControlProblem, Transition

__all__ = ["Box", "ControlProblem", "Discrete", "Environment", "Step", "Transition", "check_environment"]
