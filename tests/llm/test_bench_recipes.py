"""The recipes benchmark: finished runs are kept, every component is in a table or named as not run, figures add up."""

from __future__ import annotations

import json
import logging
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from bilevel_rl.llm.tasks.small import tiny_gpt2
from bilevel_rl.policy_gradient.recipes import ALL, COMPONENTS, compose

ROOT = Path(__file__).parents[2]


def load(path):
    spec = spec_from_file_location(f"loaded_{path.stem}", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(ROOT / "benchmarks"))  # the benchmark's files import each other, as a script's do
choosing, variants, bench = map(import_module, ("_recipes_choosing", "_recipes_variants", "recipes"))
sys.path.pop(0)


def test_every_component_is_measured_or_named_with_the_reason_why_not():
    measured = set()
    for table in variants.TABLES.values():
        for _, recipe, _ in table.values():
            measured |= {c.card.name for c in compose(recipe).components}
    for recipe in ALL:  # each runs once
        measured |= {c.card.name for c in recipe.components if recipe.name not in variants.ELSEWHERE}
    names = {cls.card.name for cls in COMPONENTS}
    assert names - measured - set(variants.NOT_RUN) == set()
    assert not measured & set(variants.NOT_RUN)


def test_a_finished_run_is_never_made_again(tmp_path):
    cells, calls = choosing.Cells(tmp_path), []

    def make():
        calls.append(1)
        return {"score": 0.5}

    first = cells.get(("sort", "a", 0.1, 0, 10), make)
    assert choosing.Cells(tmp_path).get(("sort", "a", 0.1, 0, 10), make) == first
    assert len(calls) == 1
    cells.get(("sort", "a", 0.1, 1, 10), make)
    assert len(calls) == 2


def test_settings_are_chosen_on_a_seed_that_does_not_count(tmp_path):
    seen = []

    def make(rate, seed, tokens, steps):
        seen.append((rate, seed, tokens, steps))
        score = {0.1: 0.2, 0.3: 0.9, 1.0: 0.4}[rate] - 0.01 * (seed % 7)
        more = {"score_at_steps": score / 2, "tokens_at_steps": 4, "before": 0.1, "epochs": 2}
        return {"score": score, "tokens": tokens, "seconds": 1.0, "gradient_steps": 8} | more

    found = choosing.measure(choosing.Cells(tmp_path), "sort", "a", (0.1, 0.3, 1.0), make, 3, 10, 5)
    tuning = [(rate, seed, 10, 5) for rate in (0.1, 0.3, 1.0) for seed in choosing.TUNING]
    assert seen == tuning + [(0.3, seed, 10, 5) for seed in range(3)]  # one run gives both scores
    assert found["chosen"] == 0.3
    assert not found["refused"]
    assert found["mean"] == pytest.approx(0.89)
    assert found["scores_at_equal_steps"] == pytest.approx([s / 2 for s in found["scores"]])
    assert found["low"] <= found["mean"] <= found["high"]
    assert not set(range(3)) & set(choosing.TUNING)


@pytest.mark.slow
def test_a_quick_look_writes_figures_with_their_comparison_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr("bilevel_rl.llm.tasks.small.SmallTask._train", untrained)  # no figure that is checked needs more
    out = tmp_path / "recipes.json"
    argv = ["--quick", "--families", "text_world,named", "--trl", "", "--variants", "group_norm,hgpo,segment_chain",
            "--cells", str(tmp_path), "--out", str(out)]  # fmt: skip
    before = logging.root.manager.disable
    bench.main(argv)
    assert logging.root.manager.disable == before  # tests after this one read the log
    facts = json.loads(out.read_text())
    family = facts["families"]["text_world"]
    rows = family["variants"]
    assert set(rows) == {"group_norm", "hgpo", "segment_chain"}
    assert "against_baseline" not in rows["group_norm"]  # itself: no claim, and none for Holm to count
    for key, scores in (("against_baseline", "scores"), ("against_baseline_at_equal_steps", "scores_at_equal_steps")):
        gap = sum(rows["hgpo"][scores]) / 2 - sum(rows["group_norm"][scores]) / 2
        assert rows["hgpo"][key]["mean"] == pytest.approx(gap)
    budget = family["tokens"]
    assert all(budget <= row["tokens"] for row in rows.values())
    assert rows["segment_chain"]["tokens_at_steps"] > rows["hgpo"]["tokens_at_steps"]  # what goes on from prefixes counts
    assert set(facts["named"]) == {"hgpo", "segment_chain"}
    page = load(ROOT / "docs/hooks/results.py").recipes(facts)
    assert page.count("| `") == 5
    assert "harpg" in page


def untrained(made, folder, seed):
    """A start policy that has learnt nothing."""
    words = made.tokenizer
    tiny_gpt2(len(words), seed, 40, width=16).save_pretrained(folder)
    words.save_pretrained(folder)
    return {}


def test_the_study_says_what_it_costs_and_stays_within_eight_hours():
    words = bench.cost(10)
    assert float(words.rsplit("\n", 1)[1].split()[1]) <= 8
    assert all(name in words for name in variants.TABLES)
