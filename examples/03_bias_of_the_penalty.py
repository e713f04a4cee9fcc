"""The penalty's hyper-gradient is biased in proportion to w: the slope of log error against log w is 1."""

import jax
import jax.numpy as jnp
import numpy as np

from bilevel_rl.finite import oracles
from bilevel_rl.finite.problems import GoalPlacement
from bilevel_rl.loop import use_64_bit
from bilevel_rl.statistics import log_log_slope

use_64_bit()  # asked for, since jax.jit is called from outside the library

problem, tau = GoalPlacement(), 0.05
x = problem.x0
exact = oracles.hyper_gradient(problem, x, tau)
penalised = jax.jit(lambda w: oracles.penalty_hyper_gradient(problem, x, w, tau))

weights = np.geomspace(0.3, 0.003, 7)
errors = [float(jnp.linalg.norm(penalised(w) - exact)) for w in weights]
for w, error in zip(weights, errors, strict=True):
    print(f"w = {w:.4f}   error {error:.2e}")
slope = log_log_slope(weights, errors)
print(f"slope {slope}")
assert abs(slope.value - 1) < 0.1
