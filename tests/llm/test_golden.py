"""A few iterations of every method give what they gave; `benchmarks/golden_llm.py` compares bits on one machine."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

HERE = Path(__file__).parent
_spec = importlib.util.spec_from_file_location("golden_llm", HERE.parents[1] / "benchmarks" / "golden_llm.py")
golden = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(golden)
KEPT = json.loads((HERE / "golden.json").read_text())


def test_the_file_has_every_variant():
    assert KEPT.keys() == golden.VARIANTS.keys()


@pytest.mark.parametrize("name", golden.VARIANTS)
def test_a_method_gives_what_it_gave(name):
    # other processors sum in another order, and Adam magnifies it where a gradient is nothing but rounding
    assert golden.difference(KEPT[name], golden.run(golden.VARIANTS[name])) < 1e-5
