"""The closing table of components: each has a test that exists, and the page is what the code declares."""

from __future__ import annotations

import pathlib
from importlib.util import module_from_spec, spec_from_file_location

import pytest

from bilevel_rl.policy_gradient.recipes import COMPONENTS

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def page():
    """docs/hooks/components.py as a module."""
    spec = spec_from_file_location("components_page", ROOT / "docs/hooks/components.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_component_is_held_to_something_by_a_test_that_exists(page):
    assert set(page.EVIDENCE) == {cls.card.name for cls in COMPONENTS}
    for name, (held, file, test) in page.EVIDENCE.items():
        text = (ROOT / "tests/policy_gradient" / file).read_text()
        assert held, name
        assert f"def {test}(" in text, name


def test_the_page_is_what_the_code_declares(page):
    made = (ROOT / "docs/components.md").read_text()
    assert made == page.render(), "run: python docs/hooks/components.py > docs/components.md"
