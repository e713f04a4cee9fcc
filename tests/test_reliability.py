"""A cut of benchmarks/reliability.py: bad input gets a sentence, damage is noticed, kills cost no bit."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

FILE = Path(__file__).parents[1] / "benchmarks/reliability.py"
spec = importlib.util.spec_from_file_location("reliability", FILE)
reliability = importlib.util.module_from_spec(spec)
spec.loader.exec_module(reliability)


@pytest.mark.slow
def test_generated_bad_inputs_are_refused():
    found = reliability.inputs(200, seed=1)
    assert set(found["ended"]) <= {"refused", "no"}, found["not_refused"]


@pytest.mark.slow
def test_every_damage_that_changes_something_is_noticed():
    found = reliability.corruptions(60, seed=1)
    assert set(found["ended"]) <= {"noticed", "harmless"}, found["not_noticed"]


@pytest.mark.slow
def test_kills_cost_no_bit():
    assert reliability.kills(2, seed=1)["differing"] == 0
