"""The recipes benchmark: finished runs are kept, every component is in a table or named as not run, figures add up."""

from __future__ import annotations

import json
import logging
import sys
from importlib import import_module
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from bilevel_rl.policy_gradient.recipes import COMPONENTS, compose

ROOT = Path(__file__).parents[2]


def load(path):
    spec = spec_from_file_location(f"loaded_{path.stem}", path)
    module = module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


sys.path.insert(0, str(ROOT / "benchmarks"))  # the benchmark's files import each other, as a script's do
choosing, families, variants, bench = map(
    import_module, ("_recipes_choosing", "_recipes_families", "_recipes_variants", "recipes")
)
sys.path.pop(0)


def test_every_component_is_measured_or_named_with_the_reason_why_not():
    measured = set()
    for table in (variants.SORT, variants.GRID, variants.TWEETS):
        for _, recipe, _ in table.values():
            measured |= {c.card.name for c in compose(recipe).components}
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

    def make(rate, seed, tokens):
        seen.append((rate, seed, tokens))
        score = {0.1: 0.2, 0.3: 0.9, 1.0: 0.4}[rate] - 0.01 * (seed % 7)
        return {"score": score, "tokens": tokens, "seconds": 1.0, "gradient_steps": 8, "iterations": 4}

    found = choosing.measure(choosing.Cells(tmp_path), "sort", "a", (0.1, 0.3, 1.0), make, 3, 10)
    tuning = [(rate, seed, 10) for rate in (0.1, 0.3, 1.0) for seed in choosing.TUNING]
    # two gradient steps a batch: once more with half the tokens
    assert seen == tuning + [(0.3, seed, tokens) for tokens in (10, 5) for seed in range(3)]
    assert found["chosen"] == 0.3
    assert not found["refused"]
    assert found["mean"] == pytest.approx(0.89)
    assert found["low"] <= found["mean"] <= found["high"]
    assert not set(range(3)) & set(choosing.TUNING)


def test_a_quick_look_writes_figures_with_their_comparison_and_a_page(tmp_path, monkeypatch):
    monkeypatch.setattr(families, "imitate", lambda *_: None)  # the start matters to no figure that is checked
    out = tmp_path / "recipes.json"
    argv = ["--quick", "--families", "grid", "--variants", "group_norm,hgpo", "--tokens", "16000",
            "--cells", str(tmp_path), "--out", str(out)]  # fmt: skip
    before = logging.root.manager.disable
    bench.main(argv)
    assert logging.root.manager.disable == before  # tests after this one read the log
    facts = json.loads(out.read_text())
    rows = facts["families"]["grid"]["variants"]
    assert set(rows) == {"group_norm", "hgpo"}
    assert "against_baseline" not in rows["group_norm"]  # itself: no claim, and none for Holm to count
    gap = rows["hgpo"]["mean"] - rows["group_norm"]["mean"]
    assert rows["hgpo"]["against_baseline"]["mean"] == pytest.approx(gap)
    budget = facts["families"]["grid"]["tokens"]
    assert all(budget <= row["tokens"] < budget + 64 * families.horizon() for row in rows.values())
    page = load(ROOT / "docs/hooks/results.py").recipes(facts)
    assert page.count("| `") == 2
    assert "capo" in page


def test_states_of_the_grid_come_back_by_replaying_the_moves():
    rows = families.as_prompts(list(families.games()), families.PATHS)
    y = families.Played()(families.gpt2(len(families.PATHS), 0), rows * 4, families.uniforms(16, families.horizon(), 0, 1))
    keys, turns = families.TURNS["state_key"](y), families.TURNS["turn"](y)
    for i, (prompt, ids) in enumerate(zip(y.prompts, y.completion_ids(), strict=True)):
        episode = families.played(prompt.text, ids)
        assert len(episode.actions) == int(y.lengths[i])
        assert keys[i, : len(episode.actions)].tolist() == [episode.grid.state_key(s) for s in episode.states]
        assert turns[i, 0] == 0
        assert bool(y.ended[i]) == episode.done
