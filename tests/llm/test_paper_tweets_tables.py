"""What the study of the paper's happy tweets says of its rows; the experiment's settings are its choices."""

import dataclasses
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from bilevel_rl.experiments import paper_tweets
from bilevel_rl.llm.tasks import paper_tweets as tasks
from bilevel_rl.llm.tasks.pretrain import LanguageModelConfig

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks/results/paper_tweets.json"
sys.path.insert(0, str(ROOT / "benchmarks"))  # the study's files import each other, as a script's do
sys.path.insert(0, str(ROOT / "docs/hooks"))
import paper_tweets as study  # noqa: E402
import paper_tweets_figure  # noqa: E402
import paper_tweets_reasons as reasons  # noqa: E402
import paper_tweets_tables as tables  # noqa: E402

from result_pages import tweets as pages  # noqa: E402


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
    assert set(paper_tweets.CHOSEN) == set(paper_tweets.ENTRIES)
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


ENTRIES = ("paired", "partial_sgd", "partial_sgd_twice", "shared", "tilted", "fixed_reward")
CHOICE = {"alpha": 1.0}


def rows_of_a_task():
    rows = [row(entry, seed, 0.1) for entry in ENTRIES for seed in (0, 1)]
    for seed in range(100, 106):
        rows += [row(entry, seed, 0.1 * i + 0.01 * (seed % 2)) for i, entry in enumerate(ENTRIES)]
        rows += [row(entry, seed, -0.3 - 0.01 * (seed % 3), off=True) for entry in ("paired", "shared")]
    # an earlier choice, with more seeds than the present one
    return rows + [row("paired", seed, -9.0, setting={"alpha": 2.0}) for seed in range(100, 130)]


def test_a_task_has_two_countings_and_a_bracket_for_each_method_that_was_run_without():
    found = tables.task_results(rows_of_a_task(), ENTRIES, (0, 1), range(100, 130))
    assert found["chosen"] == dict.fromkeys(ENTRIES, CHOICE)
    assert found["summary"]["paired"]["runs"] == 6  # the choice's, not the earlier one's
    by = {}
    for title, gap in found["differences"].items():
        by.setdefault(gap["at"], set()).add(title)
    assert by["updates"] == {"paired - partial_sgd", "shared - partial_sgd", "tilted - partial_sgd"}
    assert {"paired - partial_sgd_twice", "fixed_reward - partial_sgd_twice"} < by["completions"]
    assert by["bracket"] == {f"{m} - {m} without the bracket" for m in ("paired", "shared")}
    worth = found["differences"]["shared - shared without the bracket"]["difference"][0]
    assert worth == pytest.approx(0.3 + 0.31 + 0.005, abs=1e-3)
    assert found["differences"]["shared - partial_sgd"]["difference"][0] == pytest.approx(0.2)
    assert {f"{m} - {m} without the bracket" for m in ("paired", "shared")} < set(found["at_equal_kl"])
    assert "tilted - tilted without the bracket" not in found["at_equal_kl"]


def test_given_settings_are_said_to_be_given():
    fixed = {"paired": {"alpha": 2.0}}
    found = tables.task_results(rows_of_a_task(), ENTRIES, (0, 1), range(100, 130), fixed)
    assert found["chosen"]["paired"] == {"alpha": 2.0}
    assert found["summary"]["paired"]["runs"] == 30


def test_exchanged_steps_leave_what_is_a_methods_own():
    paired, partial = paper_tweets.CHOSEN["paired"], paper_tweets.CHOSEN["partial_sgd"]
    found = reasons.swaps(paper_tweets.CHOSEN)
    entry, setting, off = found["paired with the steps of partial_sgd, no bracket"]
    assert (entry, off) == ("paired", True)
    assert (setting.alpha, setting.zeta, setting.optimizer) == (partial.alpha, partial.zeta, partial.optimizer)
    assert (setting.w, setting.win_rate, setting.coupling) == (paired.w, paired.win_rate, paired.coupling)
    unpaid = found["paired with the steps of partial_sgd, no bracket, no incentive"][1]
    assert unpaid == dataclasses.replace(setting, win_rate=reasons.NOTHING)
    assert reasons.swaps({"paired": paired}) == {}  # nothing to exchange with


def test_exchanged_runs_are_compared_with_one_another_and_with_the_choices():
    paired, partial = paper_tweets.CHOSEN["paired"], paper_tweets.CHOSEN["partial_sgd"]
    exchanged = {"less": ("paired", {"alpha": 7.0}, False), "least": ("paired", {"alpha": 7.0}, True)}
    rows = [row("partial_sgd", s, 0.2 + 0.01 * s, setting=dataclasses.asdict(partial)) for s in range(5)]
    assert tables.swapped(rows, exchanged, {"paired": paired}, range(5)) == {}  # not run
    for off, level in ((False, 0.5), (True, 0.4)):
        rows += [row("paired", s, level + 0.02 * s, off=off, setting={"alpha": 7.0}) for s in range(5)]
    found = tables.swapped(rows, exchanged, {"paired": paired, "partial_sgd": partial}, range(5))
    assert list(found["summary"]) == ["partial_sgd", "less", "least"]
    assert list(found["differences"]) == ["less - partial_sgd", "least - partial_sgd", "less - least"]
    assert found["differences"]["least - partial_sgd"]["difference"][0] == pytest.approx(0.22)
    assert found["differences"]["less - least"]["difference"][0] == pytest.approx(0.1)


class Counting:
    """A bench that runs nothing and remembers what it was asked for."""

    def __init__(self, world=None):
        self.rounds, self.world, self.asked = 1, world or study.World(), []

    def row(self, entry, setting, seed, off=False):
        self.asked.append((entry, setting, seed, off))
        return {"gold": setting.alpha}

    def key(self, entry, setting, seed, off):
        return [entry, seed, off]


def test_the_plan_runs_every_control_of_a_bracket_and_the_target_on_thirty_seeds():
    bench = Counting()
    assert all(study.plan(bench, tuple(paper_tweets.ENTRIES)))
    fresh = {}
    for entry, _, seed, off in bench.asked:
        if seed in study.FRESH:
            fresh.setdefault((entry, off), set()).add(seed)
    for entry in ("paired", "partial_sgd", "partial_sgd_twice"):
        assert len(fresh[entry, False]) == 30
    assert {entry for entry, off in fresh if off} == {"paired", "shared", "tilted"}
    assert len(fresh["paired", True]) == 30
    steps = {setting.alpha for entry, setting, seed, off in bench.asked if off and entry == "paired"}
    assert len(steps) == 2  # its own, and those of partial SGD
    assert {entry for entry, setting, _, _ in bench.asked if setting.win_rate == reasons.NOTHING} == {"paired"}


def test_a_world_with_given_settings_searches_nothing():
    bench = Counting(study.WORLDS["grammar"])
    assert all(study.plan(bench, study.MAIN, ("search", "fresh")))
    assert {seed for _, _, seed, _ in bench.asked} == set(study.FRESH)
    assert {entry: setting for entry, setting, _, _ in bench.asked} == {
        entry: bench.world.given[entry][0] for entry in study.MAIN
    }


def test_candidates_carried_from_another_world_are_as_many_for_each_entry_and_have_both_steps_of_x():
    bench = Counting(study.WORLDS["paper_tweets"])
    assert all(study.plan(bench, study.MAIN, ("search", "fresh")))
    for entry, some in bench.world.given.items():
        assert [setting.optimizer for setting in some] == ["adam", "sgd_x"]
        tuned = {(s, seed) for e, s, seed, _ in bench.asked if e == entry and seed in study.TUNING}
        assert len(tuned) == (8 if entry in study.MAIN else 0)
    fresh = {setting for entry, setting, seed, _ in bench.asked if entry == "paired" and seed in study.FRESH}
    assert fresh == {max(bench.world.given["paired"], key=lambda s: s.alpha)}  # what scores best here


def test_every_world_has_equal_labels_and_the_budget_of_its_command(tmp_path):
    task = SimpleNamespace(model="m", longest=28)
    world, shipped = study.WORLDS["grammar"], study.happy_tweets.Settings().filled()
    assert (2 * world.updates, world.labels, world.sharpness) == (shipped.rollouts, shipped.labels, shipped.sharpness)
    for entry, setting in ((entry, setting) for entry, some in world.given.items() for setting in some):
        config = world.configuration(entry, setting, task, 0)
        assert config.label_budget <= config.steps * config.pairs_per_step
        assert (config.batch, config.tau, config.replay_pairs) == (32, 0.2, 16)


def test_policies_that_are_one_write_alike_by_common_numbers_and_their_bracket_is_nothing(tmp_path, monkeypatch):
    pytest.importorskip("vaderSentiment.vaderSentiment")
    tiny = LanguageModelConfig(vocabulary=300, layers=4, width=16, heads=1, context=64, steps=3, batch=8)
    monkeypatch.setattr(reasons, "BEFORE", 0)
    monkeypatch.setattr(reasons, "DRAWS", 3)
    monkeypatch.setattr(reasons, "STATES", (0,))
    bench = study.Bench(tmp_path, tasks.from_grammar(tmp_path / "cache", tiny, tweets=200, held_out_prompts=6))
    found = reasons.noise(bench, paper_tweets.CHOSEN["paired"])
    for law in ("race", "inverse"):
        assert found["tokens_alike"][law] == [1.0]
        assert found["gradients"][law] == {"mean": [0.0], "spread": [0.0]}
    assert found["tokens_alike"]["none"][0] < 0.5
    assert found["gradients"]["none"]["spread"][0] > 0
    assert found["gradients"]["direct"]["spread"][0] > 0


def test_the_signal_of_a_gradient_is_cleared_of_its_noise():
    noise = np.random.default_rng(0).normal(size=(4000, 50))
    mean, spread = reasons._moments(3.0 / 50**0.5 + noise)
    assert mean == pytest.approx(3.0, rel=0.02)
    assert spread == pytest.approx(50**0.5, rel=0.02)
    assert reasons._moments(noise)[0] < 0.1


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [((0.2, 0.1, 0.3), "consistent"), ((-0.1, -0.2, -0.01), "contradicted here"), ((0.1, -0.1, 0.3), "undecided")],
)  # fmt: skip
def test_the_claim_is_judged_in_each_world_and_counting_by_its_interval(gap, verdict):
    one = {"difference": list(gap), "seeds": 30}
    found = pages.claim_rows({"tasks": {"paper_tweets": {"differences": {pages.TARGETS[1]: one}}}})
    assert [line[-1] for line in found] == [verdict]
    assert "real tweets (TweetEval), equal labels, equal completions" in found[0][2]


def test_pages_have_a_table_for_what_was_run_and_none_for_what_was_not():
    task = tables.task_results(rows_of_a_task(), ENTRIES, (0, 1), range(100, 130))
    task |= {"before": {"gold": 0.0}, "updates": 40}
    p = {"updates": 40, "kl_bins": tables.KL_BINS}
    words = pages.countings(task, p)
    assert "At equal policy updates (40)" in words
    assert "At equal completions (80 batches)" in words
    assert len(pages.brackets(task, p).strip().splitlines()) == 4  # heads, a line, two methods
    assert pages.swaps(task, p) == pages.noise(task, p) == ""
    rows = [line.count("|") for line in pages.at_equal_kl(task, p).strip().splitlines()]
    assert len(set(rows)) == 1  # every row as wide as its heads


def test_runs_made_a_second_time_are_compared_seed_by_seed():
    first = [row("paired", s, 0.1 * s) for s in range(5)] + [row("paired", s, 0.0, off=True) for s in range(4)]
    second = [row("paired", s, 0.1 * s + (0.3 if s == 4 else 0.0)) for s in range(1, 5)]
    second += [row("paired", 9, 5.0), row("paired", 0, 5.0, off=True)]  # no partner; too few
    found = tables.again(first, second, range(10))
    assert list(found) == ["paired"]
    assert (found["paired"]["seeds"], found["paired"]["alike"], found["paired"]["largest"]) == (4, 3, 0.3)
    assert found["paired"]["difference"][0] == pytest.approx(0.075)


def test_the_picture_has_a_curve_for_each_entry_that_was_run_and_is_the_same_file_again():
    pytest.importorskip("matplotlib")
    task = tables.task_results(rows_of_a_task(), ENTRIES, (0, 1), range(100, 130)) | {"before": {"gold": 0.0}}
    del task["summary"]["partial_sgd_twice"]
    words = paper_tweets_figure.drawn({"paper_grammar": task, "grammar": task | {"summary": {}}})
    assert words == paper_tweets_figure.drawn({"paper_grammar": task})
    assert "<!-- paired (6 seeds) -->" in words
    assert "partial_sgd_twice" not in words
    assert "<!-- KL to the reference (nats) -->" in words
