"""What every solver did when `finite.json` was written, it does now; to the rounding of another machine.

Random numbers are the same bits everywhere. Sums are not: other processors add in other orders, which a dozen iterations
amplify to 1e-12 or so; a run that samples would show more only where a draw falls within rounding of a boundary.
"""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import pytest

HERE = Path(__file__).parent
spec = importlib.util.spec_from_file_location("golden", HERE.parents[1] / "benchmarks" / "golden.py")
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)

TRACES = json.loads((HERE / "finite.json").read_text())
CASES = dict(golden.cases())
QUICK = {"penalty_actor_critic/goal_placement", "exact_descent/goal_placement", "hpgd/goal_placement"}
RELATIVE, ABSOLUTE = 1e-7, 1e-10


def test_every_case_has_its_trace():
    assert TRACES.keys() == CASES.keys()
    assert QUICK <= CASES.keys()


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in CASES]
)
def test_trace(name):
    new, old = json.loads(json.dumps(CASES[name]())), TRACES[name]
    assert old.keys() <= new.keys()  # a metric more changes no trace
    for key, values in old.items():
        np.testing.assert_allclose(
            np.asarray(new[key], float), np.asarray(values, float), RELATIVE, ABSOLUTE, err_msg=f"{name}: {key}"
        )
