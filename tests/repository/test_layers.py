"""Imports go one way, and each engine loads without the other."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_import_contracts():
    from importlinter.cli import lint_imports

    assert lint_imports(config_filename=str(ROOT / "pyproject.toml"), cache_dir=None) == 0


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("bilevel_rl.finite.problems, bilevel_rl.finite.solvers, bilevel_rl.commands.run, bilevel_rl.experiments.gridworld",
         ("torch", "plotly", "transformers")),
        ("bilevel_rl.policy_gradient, bilevel_rl.llm, bilevel_rl.llm.trainer", ("jax", "plotly")),
        ("bilevel_rl.report", ("jax", "torch")),
        ("bilevel_rl, bilevel_rl.cli", ("jax", "torch", "plotly", "numpy", "transformers")),
        ("bilevel_rl.commands.list, bilevel_rl.commands.run, bilevel_rl.commands.compare, bilevel_rl.commands.completion",
         ("jax", "torch", "plotly", "scipy")),
        ("bilevel_rl.commands.sweep, bilevel_rl.commands.plan, bilevel_rl.commands.diagnose, bilevel_rl.commands.check",
         ("jax", "torch", "plotly")),
    ],
)
def test_what_a_module_does_not_load(module, absent):
    """The contracts read the source; this looks at what is really loaded."""
    code = f"import sys, {module}\nprint([name for name in {absent!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


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
