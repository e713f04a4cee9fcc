"""What the study of the paper's happy tweets says of its rows; the experiment's settings are its choices."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from bilevel_rl.experiments import paper_tweets

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/paper_tweets.json"
sys.path.insert(0, str(ROOT / "benchmarks"))  # the study's files import each other, as a script's do
import paper_tweets as study  # noqa: E402
import paper_tweets_tables as tables  # noqa: E402


def row(entry, seed, gold, kl=(0.5, 3.0), off=False, setting=None):
    curve = {"gold": [0.0, gold], "kl": list(kl), "labels": [5, 10], "samples": [50, 100]}
    return {
        "key": [entry, setting or {"alpha": 1.0}, seed, off], "gold": gold, "kl": kl[-1], "happy": 0.0, "distinct": 1.0,
        "length": 9.0, "labels": 10, "tokens": 100, "seconds": 1.0, "failure": "", "curve": curve,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("shift", "spread", "verdict"), [(0.0, 0.1, "met"), (-0.3, 0.1, "missed"), (0.0, 0.9, "undecided")]
)
def test_the_target_is_judged_by_the_interval(shift, spread, verdict):
    random = np.random.default_rng(0)
    theirs = {s: row("partial_sgd", s, float(random.normal())) for s in range(30)}
    ours = {
        s: row("paired", s, theirs[s]["gold"] + shift + spread * float(random.normal())) for s in range(30)
    }
    gap = tables.difference(ours, theirs)
    assert gap["verdict"] == verdict
    low, high = gap["difference"][1:]
    assert low < shift + 0.5 * spread
    assert gap["half_width"] == pytest.approx((high - low) / 2, abs=1e-4)


def test_rows_of_two_processes_count_once(tmp_path):
    rows = [row("paired", 0, 0.1), row("paired", 1, 0.2), row("paired", 0, 0.9)]
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    assert [r["gold"] for r in tables.read(path)] == [0.1, 0.2]


def test_controls_and_tuning_seeds_are_told_apart():
    rows = [row("paired", 0, 0.1), row("paired", 100, 0.2), row("paired", 100, 0.3, off=True)]
    assert {s: r["gold"] for s, r in tables.picked(rows, "paired", range(100, 130)).items()} == {100: 0.2}
    assert tables.picked(rows, "paired", range(100, 130), off=True)[100]["gold"] == 0.3
    assert tables.searched(rows, "paired", (0,)) == [{"setting": {"alpha": 1.0}, "gold": [0.1], "mean": 0.1}]


def test_equal_kl_compares_runs_where_both_have_been():
    ours = {s: row("paired", s, 0.5 + 0.1 * s, kl=(0.5, 3.0)) for s in range(6)}
    theirs = {s: row("partial_sgd", s, 0.4 + 0.1 * s, kl=(0.5, 3.0 if s < 5 else 9.0)) for s in range(6)}
    found = tables.at_equal_kl(ours, theirs)
    assert found[0]["seeds"] == 6
    assert found[2]["seeds"] == 5
    assert found[2]["difference"][0] == pytest.approx(0.1)
    assert found[4] is None


def test_every_method_has_as_many_settings_and_a_second_round_reaches_beyond_the_first():
    for method in study.OWN:
        first = study.drawn(method, study.FIRST, seed=1)
        assert len(first) == study.FIRST
        for name in study.OWN[method]:
            for setting in first:
                low, high = study.span(method, name, setting.optimizer)
                assert 0.98 * low <= getattr(setting, name) <= 1.02 * high or name == "fit"
        best = max(first, key=lambda s: s.alpha)
        second = study.drawn(method, study.SECOND, seed=2, centre=best)
        assert {s.optimizer for s in second} == {best.optimizer}
        assert max(s.alpha for s in second) > best.alpha > min(s.alpha for s in second)


def test_a_choice_at_an_edge_is_named():
    tried = [paper_tweets.Setting(alpha, 1e-3) for alpha in (5e-4, 2e-3, 7.9e-3)]
    assert study.at_edge("partial_sgd", tried, tried[2]) == ["alpha"]
    assert study.at_edge("partial_sgd", tried, tried[1]) == []


def test_the_experiments_settings_are_the_choices_of_the_study():
    chosen = json.loads(RESULTS.read_text())["tasks"]["paper_grammar"]["chosen"]
    assert set(paper_tweets.CHOSEN) | set(paper_tweets.BORROWED) == set(paper_tweets.ENTRIES)
    for entry, setting in paper_tweets.CHOSEN.items():
        assert setting.optimizer == chosen[entry]["optimizer"]
        for name in study.OWN[paper_tweets.ENTRIES[entry]]:
            assert getattr(setting, name) == pytest.approx(chosen[entry][name], rel=5e-3)


def test_a_committed_search_is_gone_on_with(tmp_path):
    results = json.loads(RESULTS.read_text())
    count = study.restore(results, tmp_path)
    assert study.restore(results, tmp_path) == 0  # all there
    assert count == sum(
        len(line["gold"]) for t in results["tasks"].values() for by in t["search"].values() for line in by
    )
    for name, task in results["tasks"].items():
        rows = tables.read(tmp_path / f"{name}.jsonl")
        for entry, lines in task["search"].items():
            assert tables.searched(rows, entry, results["protocol"]["tuning"]) == lines
        assert not tables.picked(rows, "paired", study.FRESH)


def test_what_only_an_earlier_study_measured_is_kept():
    gap, summary = {"difference": [0.1, 0.0, 0.2]}, {"paired": {}}
    first = {"differences": {"one": gap, "two": gap}, "chosen": {"paired": 1}, "summary": summary}
    before = {"tasks": {"a": first, "b": {"differences": {}}}}
    after = study.carried(before, {"tasks": {"a": {"differences": {"one": {}}, "chosen": {"paired": 2}}}})
    assert after["tasks"]["a"]["differences"] == {"one": {}}
    assert after["tasks"]["a"]["earlier"] == {
        "chosen": {"paired": 1},
        "summary": summary,
        "differences": {"two": gap},
    }
    assert after["tasks"]["b"] == before["tasks"]["b"]
    again = study.carried(after, {"tasks": {"a": {"differences": {"one": {}}}}})
    assert again["tasks"]["a"]["earlier"]["differences"] == {"two": gap}
