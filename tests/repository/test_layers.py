"""Imports go one way, and each engine loads without the other."""

from __future__ import annotations

import subprocess
import sys

import pytest

# what is imported in one process, one after the other, and what none of it has loaded by then
LOADED = {
    "the command line, then tables": [
        ("bilevel_rl, bilevel_rl.cli", ("jax", "torch", "plotly", "numpy", "transformers")),
        ("bilevel_rl.commands.list, bilevel_rl.commands.run, bilevel_rl.commands.compare, bilevel_rl.commands.completion",
         ("jax", "torch", "plotly", "scipy")),
        ("bilevel_rl.commands.sweep, bilevel_rl.commands.plan, bilevel_rl.commands.diagnose, bilevel_rl.commands.check",
         ("jax", "torch", "plotly")),
        ("bilevel_rl.finite.problems, bilevel_rl.finite.solvers, bilevel_rl.experiments.gridworld",
         ("torch", "plotly", "transformers")),
    ],
    "language models": [
        ("bilevel_rl.levels", ("jax", "torch")),
        ("bilevel_rl.policy_gradient, bilevel_rl.llm, bilevel_rl.llm.trainer", ("jax", "plotly")),
    ],
    "the report": [("bilevel_rl.report", ("jax", "torch"))],
}  # fmt: skip


@pytest.mark.parametrize("what", LOADED)
def test_what_a_module_does_not_load(what):
    """`lint-imports` reads the source; this looks at what is really loaded."""
    code = "import sys\n" + "\n".join(
        f"import {module}\nprint([name for name in {absent!r} if name in sys.modules])" for module, absent in LOADED[what]
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == ["[]"] * len(LOADED[what])


@pytest.mark.parametrize("times", [500, pytest.param(1500, marks=pytest.mark.slow)])
def test_batched_solves_do_not_deadlock(times):
    """jaxlib waits for ever on two cores when several batched solves are in flight, unless its pool is large enough."""
    code = f"""
import bilevel_rl.finite, jax, jax.numpy as jnp
f = jax.jit(lambda A, b: sum(jnp.linalg.solve(jnp.eye(36) * 2 + i * 0.1 * A, b) for i in range(6)))
A, b = jax.random.uniform(jax.random.key(0), (16, 36, 36)) * 0.01, jnp.ones((16, 36, 1))
for _ in range({times}):
    f(A, b).block_until_ready()
"""
    subprocess.run([sys.executable, "-c", code], check=True, timeout=200)
