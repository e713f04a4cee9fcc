"""Importing the library leaves the caller's JAX as it is: seen in a fresh process, where nobody asked for 64 bits."""

from __future__ import annotations

import os
import subprocess
import sys

CALLER = """
import os, warnings
warnings.simplefilter("error")
import jax, jax.numpy as jnp
import numpy as np
import bilevel_rl.finite
from bilevel_rl.finite import BilevelProblem, FiniteMDP, oracles, solve
from bilevel_rl.finite.objectives import VisitationUtility
from bilevel_rl.finite.solvers import CoupledPenalty, ExactDescent

class Toll(BilevelProblem):
    name = "toll"
    def __init__(self, x0=0.1):
        self.mdp = FiniteMDP.from_dense([[[1.0, 0.0], [0.0, 1.0]]] * 2, discount=0.9)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=0.2)
        self.x0 = jnp.array([x0])
    def reward(self, x):
        return jnp.stack([jnp.full(2, 0.3), jnp.full(2, x[0])])
    def box(self):
        return jnp.array([0.0]), jnp.array([1.0])

assert jnp.zeros(1).dtype == jnp.float32
toll = Toll()
toll.check(thorough=False)
trace = solve(toll, ExactDescent(0.5), iterations=60, record_every=60)
value = float(oracles.hyper_objective(toll, trace.x[0, -1], 0.05))
assert abs(value - trace["objective"][0, -1]) < 1e-14, value
assert oracles.hyper_gradient(toll, toll.x0, 0.05).dtype == jnp.float64
assert solve(toll, CoupledPenalty(), iterations=2, record_every=2, evaluate=False).state.Q.dtype == jnp.float64
assert jax.jit(lambda v: v + 1)(jnp.ones(2)).dtype == jnp.float32
assert jnp.zeros(1).dtype == jnp.float32
assert not jax.config.jax_enable_x64
assert "NPROC" not in os.environ
bilevel_rl.loop.use_64_bit()
assert jnp.zeros(1).dtype == jnp.float64
"""


def test_a_caller_in_32_bits_keeps_them_and_our_answers_have_64():
    environment = {key: value for key, value in os.environ.items() if key not in ("JAX_ENABLE_X64", "NPROC")}
    done = subprocess.run([sys.executable, "-c", CALLER], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
