"""The report: what it says is what the run folders hold, it needs no network, and it works in a browser."""

from __future__ import annotations

import base64
import dataclasses
import gzip
import io
import json
import re
import shutil
import types

import numpy as np
import pytest

from bilevel_rl import json_lines, records
from bilevel_rl.cli import main
from bilevel_rl.errors import InvalidConfig, RunNotFound
from bilevel_rl.report import (
    answers,
    build,
    collect,
    export,
    figures,
    layered,
    plot,
    policies,
    scenes,
    style,
    tables,
    texts,
)
from bilevel_rl.report import page as render

BEST = -0.5
RECORDS, STATES = 12, 6


def finite_run(
    folder, name: str, final: float, runs: int = 5, model: bool = False, seed: int = 0, d: int = 2,
    budget: int | None = None, problem: str = "toy", length: int = RECORDS, **more,
) -> None:  # fmt: skip
    """A run folder as `solve` writes it, with made-up numbers: the gap falls from 0.4 to `final`."""
    noise = np.random.default_rng(seed).normal(size=(runs, length)) * 1e-3
    gap = np.geomspace(0.4, final, length) * (1 + noise)
    k = np.arange(length) * 100.0
    trace = {
        "samples": np.tile(0 * k if model else 10 * k, (runs, 1)), "iteration": np.tile(k, (runs, 1)),
        "gap": gap, "objective": BEST + gap, "status": np.zeros(runs, int),
        "x": np.random.default_rng(1).uniform(size=(runs, length, d)),
    }  # fmt: skip
    if not model:
        trace["gradient_error"] = gap
        trace |= {
            key: np.tile(1 / (k + 1) ** p, (runs, 1))
            for key, p in zip(("zeta", "alpha", "beta", "w", "tau"), (0.9, 0.5, 0.5, 0.15, 0.05), strict=True)
        }
    config = {
        "problem": problem, "problem_options": {"rows": 2, "columns": 3}, "solver": name,
        "command": f"bilevel-rl run {problem} {name}",
        "solver_options": {"chains": 8, "scales": {"w": {"initial": 0.5, "power": 0.15, "floor": 0.0}}},
        "optimum": {"x": [0.5] * d, "value": BEST, "grid_value": BEST},
    } | more  # fmt: skip
    trace = {key: value if key == "status" else value[:, :budget] for key, value in trace.items()}
    run = records.Run(
        "finite",
        name,
        problem,
        config,
        trace,
        {"state": "finished", "message": ""},
        records.provenance("made up"),
        seed,
    )
    run.write(folder)
    policy = np.random.default_rng(2).dirichlet(np.ones(4), size=(RECORDS, STATES))
    records.write_arrays(folder / "scene.npz", {
        "policy": policy, "visitation": policy[:, :, 0], "reward": policy[:, :, 1],
        "marker": np.linspace([0, 0], [1, 2], RECORDS), "rows": np.array(2), "columns": np.array(3),
        "cells": np.argwhere(np.ones((2, 3))), "arrows": np.array([[-1, 0], [0, 1], [1, 0], [0, -1]]),
    })  # fmt: skip


def llm_run(folder, method: str, seed: int, gain: float) -> None:
    """A language-model run folder as the trainer writes it."""
    records.make_folder(folder)
    config = {"method": method, "estimator": "shared", "seed": seed, "alpha": 0.001}
    run = records.Run(
        "llm", method, "tweets", config, {}, {}, records.provenance("bilevel-rl llm happy-tweets"), seed
    )
    records.write_json(folder / "run.json", run.header())
    records.write_json(folder / "status.json", {"state": "finished", "message": ""})
    for k in range(RECORDS):
        json_lines.append_line(folder / "metrics.jsonl", {
            "iteration": k + 1, "samples": 640 * (k + 1), "labels": 8 * (k + 1), "gold": 0.3 + gain * k + 0.01 * seed,
            "learned_reward": 0.1 * k, "kl": 0.2 * k, "entropy": 2.0 - 0.05 * k, "upper": 0.7 - 0.01 * k,
        })  # fmt: skip
    for k in (1, RECORDS):
        text = "I am <b>happy</b> </script>" if k > 1 else "so tired"
        row = {
            "iteration": k,
            "prompt": "today ",
            "completion": text,
            "reward": 0.5,
            "gold": None if k == 1 else 0.9,
        }
        json_lines.append_line(folder / "samples.jsonl", row)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    finite_run(folder / "a", "first_method", 0.005)
    finite_run(folder / "b", "second_method", 0.3, seed=3)
    finite_run(folder / "c", "with_model", 1e-12, model=True)
    for seed in range(3):
        llm_run(folder / f"llm/bilevel-{seed}", "bilevel", seed, 0.04)
        llm_run(folder / f"llm/fixed-{seed}", "fixed_reward", seed, 0.01)
    return folder


@pytest.fixture(scope="module")
def page(runs):
    return build([runs], runs / "report.html")


def test_page_fetches_nothing(page):
    """No element of the page names another file or host; links inside Plotly's own code are never followed."""
    text = page.read_text()
    body = re.sub(r"<script>.*?</script>", "", text, flags=re.DOTALL)
    assert not re.findall(r"(?:src|href)\s*=\s*[\"'](?!data:|#)", body)
    assert "url(" not in body
    assert "@import" not in body


def test_page_holds_plotly_once_and_whole(page):
    packed = re.findall(r'<script type="application/gzip" id="plotly">(.*?)</script>', page.read_text())
    assert len(packed) == 1
    assert gzip.decompress(base64.b64decode(packed[0])).count(b"* plotly.js (basic - minified) v") == 1


def test_page_is_small(page):
    """Plotly's part for lines and bars takes half a megabyte, compressed; what is drawn adds little."""
    assert len(render.plotly()) < 550_000
    assert page.stat().st_size - len(render.plotly()) < 500_000


def test_a_page_of_many_methods_and_records_stays_within_two_megabytes(tmp_path):
    """Four problems, nine methods each, thousands of records: points and bands are thinned to what a screen can show."""
    for i in range(4):
        for j in range(9):
            finite_run(tmp_path / f"{i}-{j}", f"method_{j}", 0.1, problem=f"toy_{i}", length=1500)
    assert build([tmp_path], tmp_path / "r.html").stat().st_size < 2_000_000


def test_the_part_of_plotly_draws_every_kind_of_line_that_figures_use(runs):
    kinds = {t.type for s in collect.sections([runs]) for f in figures.of(s) for t in f.plot.data}
    assert kinds <= {"scatter", "bar", "pie"}  # what the basic bundle holds


def test_text_of_a_model_cannot_break_the_page(page):
    text = page.read_text()
    assert "I am &lt;b&gt;happy&lt;/b&gt; &lt;/script&gt;" in text
    assert text.count("</script>") == 2  # Plotly's, and the page's own


def test_table_says_what_the_folders_hold(runs):
    section = next(s for s in collect.sections([runs]) if s.kind == "finite")
    heads, rows, _ = tables.results(section)
    by_label = {row[0]: dict(zip(heads, row, strict=True)) for row in rows}
    assert list(by_label) == ["first_method", "second_method", "with_model"]
    assert by_label["first_method"]["within 5 %"].startswith("5 of 5")
    assert by_label["second_method"]["within 5 %"].startswith("0 of 5")
    assert by_label["with_model"]["samples"] == "model"
    gap = np.sort(records.Run.read(runs / "a").trace["gap"][:, -1])[1:-1].mean()
    assert by_label["first_method"]["gap"].startswith(f"{gap:.3g}")
    # within 5 % of 0.5: a gap of 0.025; geomspace(0.4, 0.005, 12) is below it from record 7 on, 1,000 samples a record
    assert by_label["first_method"]["samples to 5 %"] == "7,000"
    assert by_label["second_method"]["samples to 5 %"] == "–"


def test_seeds_of_a_language_model_are_one_method(runs):
    section = next(s for s in collect.sections([runs]) if s.kind == "llm")
    assert {m.label: m.count for m in section.methods} == {"bilevel, shared": 3, "fixed_reward": 3}
    keys = [figure.key for figure in figures.of(section)]
    for key in ("gold", "gold-learned_reward", "gold-kl", "gold-labels", "entropy"):
        assert key in keys


def test_finite_figures(runs):
    section = next(s for s in collect.sections([runs]) if s.kind == "finite")
    drawn = {figure.key: figure for figure in figures.of(section)}
    assert {"objective", "gap", "gradient_error", "sequences", "profile", "endings"} <= drawn.keys()
    assert "5 runs" in drawn["gap"].caption
    lines = [t for t in drawn["gap"].plot.data if t.fill is None]
    assert [t.name for t in lines] == ["first_method", "second_method"]
    assert "with_model (uses the model) lies below the axis" in drawn["gap"].caption
    assert lines[0].x[-1] == 11_000


def test_captions_and_commands_are_on_the_page(page):
    text = page.read_text()
    assert "bilevel-rl run toy first_method" in text
    assert "chains 8 · w 0.5/(k+1)^0.15" in text


def test_scene_keeps_probabilities(runs):
    method = collect.sections([runs / "a"])[0].methods[0]
    scene = scenes.scene(method)
    assert (scene["kind"], scene["rows"], scene["frames"]) == ("grid", 2, RECORDS)
    policy = unpacked(scene["policy"]).reshape(RECORDS, STATES, 4)
    np.testing.assert_allclose(policy, method.scene["policy"], atol=0.5 / 255)
    assert unpacked(scene["visitation"]).reshape(RECORDS, STATES).max(axis=1) == pytest.approx(1)
    assert scene["marker"][-1] == [1, 2]


def unpacked(text: str) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), np.uint8) / 255


def drawn(problem, policy, frames: int = 2):
    """A method whose scene is what the problem writes of a policy, the same at every record."""
    import jax.numpy as jnp

    scene = problem.scene(problem.x0, jnp.asarray(policy))
    arrays = {k: np.stack([np.asarray(v)] * frames) for k, v in scene.items()}
    d = len(problem.x0)
    trace = {"samples": np.zeros((1, frames)), "iteration": np.zeros((1, frames)), "objective": np.zeros((1, frames)),
             "x": np.zeros((1, frames, d))}  # fmt: skip
    run = records.Run("finite", "m", problem.name, {}, trace, {}, {}, 0, x_names=tuple(problem.x_names))
    return collect.MethodRuns("m", trace, (run,), (), arrays | problem.backdrop(), ())


def test_a_road_network_is_drawn_with_the_share_of_drivers_on_each_road():
    from bilevel_rl.finite.problems import Braess

    half = np.array([[0.5, 0.5], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0], [1.0, 0.0]])  # at s both ways, at a the shortcut
    problem = Braess()
    method = drawn(problem, half)
    scene = scenes.scene(method)
    names = scene["names"]
    roads = {(names[i], names[j]): share for (i, j), share in zip(scene["edges"], scene["share"][0], strict=True)}
    assert names == ["s", "a", "b (1)", "b (2)", "t"]
    leads = {names[i]: [names[j] for k, j in scene["edges"] if k == i] for i in range(5)}
    assert sum(roads["s", to] for to in leads["s"]) == pytest.approx(1)  # everybody leaves, whatever the discount
    assert sum(share for (_, to), share in roads.items() if to == "t") == pytest.approx(1)  # and arrives
    places = np.array(scene["places"])
    assert places[0, 0] == 0  # it starts on the left, and no two places are one
    assert len(np.unique(places, axis=0)) == 5
    rows = policies.table(method)["rows"]
    assert rows[0]["state"] == "s"
    assert all(row["state"] != "t" for row in rows)  # where everything is over nobody decides
    assert {name for name, _, _ in rows[0]["actions"]} == {"to a", "to b (1)"}


def test_a_taxi_is_drawn_in_its_town_and_its_policy_is_in_words():
    from bilevel_rl.finite.problems import FrozenLake, Taxi

    problem = Taxi()
    uniform = np.full((500, 6), 1 / 6)
    method = drawn(problem, uniform)
    scene = scenes.scene(method)
    assert (scene["rows"], scene["columns"], len(scene["cells"])) == (5, 5, 25)  # twenty states a cell
    assert scene["letters"][0] == "R   G"
    assert [0, 1, 0, 2] in scene["walls"]
    np.testing.assert_allclose(unpacked(scene["policy"]), 1 / 6, atol=0.5 / 255)
    row = policies.table(method)["rows"][0]
    assert re.fullmatch(r"\(\d, \d\), passenger (at [RGYB]|aboard), to [RGYB]", row["state"])
    assert {name for name, _, _ in row["actions"]} >= {"pick up", "drop off"}
    lake = scenes.scene(drawn(FrozenLake(), np.full((16, 4), 0.25)))
    assert lake["letters"] == ["SFFF", "FHFH", "FFFH", "HFFG"]


def test_a_network_without_places_is_laid_out_from_its_start():
    cycle = np.roll(np.eye(4, dtype=bool), 1, axis=1)
    assert layered.places(cycle, [1, 0, 0, 0])[:, 0].tolist() == pytest.approx([0, 1 / 3, 2 / 3, 1])
    anywhere = layered.places(cycle, np.full(4, 0.25))
    assert len(np.unique(anywhere.round(6), axis=0)) == 4


def test_an_episode_is_drawn_step_by_step():
    steps = np.linspace(0, 1, 10)
    arrays = {"path_points": np.stack([np.stack([steps, steps**2], axis=1)[:, None]] * 3)}
    trace = {"samples": np.zeros((1, 3)), "iteration": np.zeros((1, 3))}
    run = records.Run("control", "m", "p", {}, trace, {}, {}, 0)
    scene = scenes.scene(collect.MethodRuns("m", trace, (run,), (), arrays, ()))
    assert (scene["kind"], scene["frames"], scene["high"]) == ("episode", 10, [1, 1])
    assert scene["paths"]["points"][-1] == [[1, 1]]


def test_names_beside_lines_are_kept_apart():
    placed = style.apart([0.5, 0.5, 0.52, 0.0], 0.0, 1.0, 0.06)
    gaps = np.diff(np.sort(placed))
    assert gaps.min() >= 0.06 - 1e-9
    assert max(style.apart([1.0] * 5, 0.0, 1.0, 0.06)) <= 1


def test_methods_stand_side_by_side_on_the_prompts_they_share(runs):
    section = next(s for s in collect.sections([runs]) if s.kind == "llm")
    found = texts.together(section)
    assert len(found["labels"]) == 2
    assert all(cell["iteration"] == RECORDS for row in found["rows"] for cell in row["cells"] if cell)
    assert found["rows"][0]["prompt"] == "today "


def test_no_run_is_a_clear_error(tmp_path, snapshot):
    with pytest.raises(RunNotFound) as error:
        build([tmp_path], tmp_path / "report.html")
    assert str(error.value).replace(str(tmp_path), "FOLDER") == snapshot
    assert not (tmp_path / "report.html").exists()


def test_a_damaged_run_hides_no_other_and_is_named(tmp_path, capsys):
    """Truncated metrics, a torn header, a lost header, one run that began only: each is named, the others are shown."""
    finite_run(tmp_path / "good", "good", 0.1)
    finite_run(tmp_path / "cut", "cut", 0.1)
    data = (tmp_path / "cut/metrics.npz").read_bytes()
    (tmp_path / "cut/metrics.npz").write_bytes(data[: len(data) // 2])
    (tmp_path / "torn").mkdir()
    (tmp_path / "torn/run.json").write_text("{")
    finite_run(tmp_path / "lost", "lost", 0.1)
    (tmp_path / "lost/run.json").unlink()
    llm_run(tmp_path / "begun", "bilevel", 0, 0.1)
    (tmp_path / "begun/metrics.jsonl").write_text("")
    found = collect.read([tmp_path])
    assert [m.label for s in found.sections for m in s.methods] == ["good"]
    assert main(["report", str(tmp_path)]) == 1
    printed, page = capsys.readouterr().err, (tmp_path / "report.html").read_text()
    for name in ("cut/metrics.npz", "torn/run.json", "lost/run.json", "begun"):
        assert len([s for s in found.trouble if name in s]) == 1, name
        assert name in printed
        assert name in page


def test_a_truncated_scene_costs_the_drawing_only(tmp_path, capsys):
    finite_run(tmp_path / "a", "a", 0.1)
    (tmp_path / "a/scene.npz").write_bytes(b"PK")
    assert main(["report", str(tmp_path)]) == 0
    assert "scene.npz" in capsys.readouterr().err
    assert "scene.npz" in (tmp_path / "report.html").read_text()
    records.write_arrays(tmp_path / "a/scene.npz", {name: np.zeros(3) for name in scenes.GRID})  # no scene at all
    assert main(["report", str(tmp_path)]) == 0
    assert "scene can&#39;t be drawn" in (tmp_path / "report.html").read_text()


def test_a_header_changed_by_hand_is_said(tmp_path):
    finite_run(tmp_path / "a", "a", 0.1)
    path = tmp_path / "a/run.json"
    path.write_text(path.read_text().replace('"chains": 8', '"chains": 9'))
    (section,) = collect.sections([tmp_path])
    assert "was changed after it was written" in section.methods[0].trouble[0]


def test_seeds_of_one_setting_are_pooled_and_nothing_else(tmp_path):
    """Seeds are one method; other settings, lengths, gradings and problem files stand apart, labelled by what differs."""
    finite_run(tmp_path / "a", "m", 0.1, seed=0)
    finite_run(tmp_path / "b", "m", 0.1, seed=1)
    scales = {"w": {"initial": 0.5, "power": 0.15, "floor": 0.0}}
    finite_run(tmp_path / "c", "m", 0.1, solver_options={"chains": 32, "scales": scales})
    finite_run(tmp_path / "d", "m", 0.1, budget=6)
    finite_run(tmp_path / "e", "m", 0.1, tau=0.0)
    finite_run(tmp_path / "f", "m", 0.1)
    (tmp_path / "f/problem.py").write_text("price = 2")
    found = {(s.options, m.label): m.count for s in collect.sections([tmp_path]) for m in s.methods}
    assert sorted(found.values()) == [5, 5, 5, 5, 10]
    assert sorted(label for options, label in found) == [
        "m", "m", "m, chains 32, 11,000 samples", "m, chains 8, 11,000 samples", "m, chains 8, 5,000 samples",
    ]  # fmt: skip
    sections = {options.removeprefix("rows 2 · columns 3") for options, _ in found}
    assert " · graded at τ = 0" in sections
    assert len([options for options in sections if "problem file" in options]) == 2


def test_the_two_temperatures_are_named_under_the_table(tmp_path):
    options = {"chains": 8, "scales": {"tau": {"initial": 0.05, "power": 0.0, "floor": 0.0}}}
    finite_run(tmp_path / "a", "m", 0.1, solver_options=options, tau=0.0)
    (section,) = collect.sections([tmp_path])
    assert tables.finite(section)[2].endswith("Followers answer at τ = 0.05; graded at τ = 0.")
    fading = {"chains": 8, "scales": {"tau": {"initial": 0.5, "power": 0.05, "floor": 0.0}}}
    finite_run(tmp_path / "b", "n", 0.1, solver_options=fading, tau=0.0)
    (section,) = collect.sections([tmp_path])
    assert "τ = 0.05 (m), τ = 0.5, falling (n); graded at τ = 0." in tables.finite(section)[2]


def test_unequal_budgets_are_not_compared_as_equal(tmp_path):
    """The full run is better at its own budget and worse at the one that both have."""
    finite_run(tmp_path / "a", "short", 0.02, budget=6)
    finite_run(tmp_path / "b", "long", 0.005)
    (section,) = collect.sections([tmp_path])
    heads, rows, note = tables.results(section)
    assert section.common == 5000
    short, long = (dict(zip(heads, row, strict=True)) for row in rows)
    assert short["gap"] == short["gap at 5,000"]
    assert float(long["gap"].split()[0]) < float(short["gap"].split()[0])
    assert float(long["gap at 5,000"].split()[0]) < 0.4
    assert "Budgets differ" in note
    assert "Budgets differ, from 5,000 to 11,000" in build([tmp_path], tmp_path / "r.html").read_text()


@pytest.mark.parametrize("d", [1, 2, 5, 12, 40])
def test_the_answer_is_drawn_in_any_dimension(d, tmp_path):
    finite_run(tmp_path / "a", "first", 0.1, d=d)
    finite_run(tmp_path / "b", "second", 0.1, d=d, model=True)
    (section,) = collect.sections([tmp_path])
    drawn = {figure.key: figure for figure in figures.of(section)}
    assert "x" in drawn
    ends = section.methods[0].trace["x"][:, -1]
    points = [t for t in drawn["endings"].plot.data if t.name == "first"]
    if d == 2:
        np.testing.assert_allclose(points[0].x, ends[:, 0], rtol=1e-4)
    elif d <= answers.MANY:
        np.testing.assert_allclose(points[0].y, ends.ravel(), rtol=1e-4)
    else:
        assert len(points[0].y) == d
    lines = [t for t in drawn["x"].plot.data if t.fill is None]
    assert len(lines) == min(d, answers.LINES)  # only the method that samples
    if d <= answers.LINES:
        np.testing.assert_allclose(lines[0].y[0], np.sort(section.methods[0].trace["x"][:, 0, 0])[1:-1].mean(), rtol=1e-4)
    build([tmp_path], tmp_path / "r.html")


def test_x_is_called_by_its_names(tmp_path):
    finite_run(tmp_path / "a", "first", 0.1)
    header = records.read_header(tmp_path / "a")
    records.write_header(tmp_path / "a", {k: v for k, v in header.items() if k != "checksum"} | {"x_names": ["toll", "tax"]})
    (section,) = collect.sections([tmp_path])
    assert section.methods[0].names() == ["toll", "tax"]
    assert not section.methods[0].trouble
    assert "toll" in str(next(f for f in figures.of(section) if f.key == "x").plot.to_json())


def test_what_networks_earn_is_drawn_against_what_the_leader_gets(tmp_path):
    """From the first steps on: before them nobody has earned anything."""
    finite_run(tmp_path / "a", "first", 0.1)
    run = records.Run.read(tmp_path / "a")
    shutil.rmtree(tmp_path / "a")
    earned = np.tile(np.r_[0.0, np.linspace(2.0, 3.0, RECORDS - 1)], (5, 1))
    dataclasses.replace(run, trace=run.trace | {"outcome": -earned, "follower_outcome": earned}).write(tmp_path / "a")
    (section,) = collect.sections([tmp_path])
    drawn = next(f for f in figures.of(section) if f.key == "outcome-follower_outcome")
    line, begun, end, _ = drawn.plot.data
    assert line.x[0] == begun.x[0] == 2.0
    assert end.x[0] == 3.0
    assert end.y[0] == -3.0


class Axes:
    """Stands for Matplotlib's."""

    def __init__(self):
        self.lines, self.bands, self.words = [], [], []

    def plot(self, x, y, label=None):
        self.lines.append((x, y, label))

    def fill_between(self, x, low, high, **_):
        self.bands.append((low, high))

    def set_xlabel(self, word):
        self.words.append(word)

    set_ylabel = set_xlabel


def test_plot_draws_a_trace_as_a_figure_or_on_axes(runs):
    trace = types.SimpleNamespace(metrics=records.Run.read(runs / "a").trace)
    figure = plot(trace, metric="gap")
    gap = np.sort(trace.metrics["gap"], axis=0)[1:-1].mean(0)
    np.testing.assert_allclose(figure.data[-1].y, gap, rtol=1e-4)
    axes = Axes()
    assert plot(trace, axes, label="mine") is axes
    (_, y, label), (low, high) = axes.lines[0], axes.bands[0]
    assert label == "mine"
    assert (low <= y).all()
    assert (y <= high).all()
    assert axes.words == ["samples", "Φ_τ(x), objective"]
    with pytest.raises(InvalidConfig, match="Did you mean 'objective'"):
        plot(trace, metric="objectiv")


# -- in a browser ---------------------------------------------------------------------------------------------------


def chromium() -> str | None:
    """Path of a Chromium or Chrome, if there is one."""
    names = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
    return next(filter(None, map(shutil.which, names)), None)


@pytest.fixture(scope="module")
def browser():
    if chromium() is None or shutil.which("chromedriver") is None:
        pytest.skip("no Chromium with chromedriver here: apt-get install chromium chromium-driver")
    webdriver = pytest.importorskip("selenium.webdriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium()
    for word in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1200,900",
    ):
        options.add_argument(word)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(120)
    yield driver
    driver.quit()
    service.stop()


@pytest.mark.slow
def test_page_works_in_a_browser_offline(page, browser):
    browser.execute_cdp_cmd("Network.enable", {})
    browser.execute_cdp_cmd(
        "Network.emulateNetworkConditions",
        {"offline": True, "latency": 0, "downloadThroughput": 0, "uploadThroughput": 0},
    )
    browser.get(page.as_uri())
    run = browser.execute_script
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(browser, 60).until(lambda _: run("return document.documentElement.dataset.ready") == "yes")
    assert run("return document.querySelectorAll('.plot .main-svg').length") >= 10
    assert run("return [...document.querySelectorAll('.plot, canvas')].every(n => n.getAttribute('aria-label').length > 20)")
    assert run("return document.documentElement.scrollWidth <= innerWidth")

    # a GIF that others read, with a frame a record
    film = run("const m = movies[0], frames = [0, 1, 2].map((k) => { const c = document.createElement('canvas');"
               "m.paint(c, 120, 1, k); return c.getContext('2d').getImageData(0, 0, c.width, c.height).data; });"
               "return Array.from(gif(frames, 120, 80, 8))")  # fmt: skip
    image = pytest.importorskip("PIL.Image").open(io.BytesIO(bytes(film)))
    assert (image.size, image.n_frames) == ((120, 80), 3)
    seen = run("const m = movies[0], c = document.createElement('canvas'); m.paint(c, 120, 1, 1);"
               "return Array.from(c.getContext('2d').getImageData(0, 0, 120, 80).data)")  # fmt: skip
    image.seek(1)
    apart = np.asarray(image.convert("RGB"), int) - np.reshape(seen, (80, 120, 4))[:, :, :3]
    assert np.abs(apart).max() <= 8 + 32  # five bits a channel, and at most a rare colour's neighbour
    assert np.abs(apart).mean() < 5
    table = run("return movies[0].table()")
    assert len(table) == 1 + RECORDS
    assert table[0][:3] == ["iteration", "samples", "objective"]
    assert all(len(row) == len(table[0]) for row in table)

    # dark pages are printed light
    run("setTheme(true); dispatchEvent(new Event('beforeprint'))")
    assert run("return document.documentElement.dataset.theme") == "light"
    run("dispatchEvent(new Event('afterprint'))")
    assert run("return document.documentElement.dataset.theme") == "dark"
    run("setTheme(false)")

    # the slider moves the grid: another frame, another picture, another reading
    picture = "return document.querySelector('canvas').toDataURL()"
    reading = "return document.querySelector('.readout').textContent"
    last, last_text = run(picture), run(reading)
    run(
        "const s = document.querySelector('input[type=range]'); s.value = 0; s.dispatchEvent(new Event('input'));"
    )
    first, first_text = run(picture), run(reading)
    assert first != last
    assert first_text != last_text
    assert "11,000 samples" in last_text

    # a chip hides its method everywhere; the switches change the axes; the theme changes the picture
    run("document.querySelector('.chip').click()")
    traces = "document.getElementById('s0-gap').data.filter(t => t.legendgroup === 'first_method')"
    visible = f"return {traces}.map(t => t.visible)"
    assert set(run(visible)) == {False}
    run("document.querySelector('[data-plot=s0-gap][data-axis=yaxis]').click()")
    assert run("return document.getElementById('s0-gap').layout.yaxis.type") == "linear"
    run("document.getElementById('theme').click()")
    assert run(picture) != first

    # it plays to the end by itself
    run("document.querySelector('.play').click()")
    WebDriverWait(browser, 30).until(
        lambda _: run("return document.querySelector('input[type=range]').value") == str(RECORDS - 1)
    )

    severe = [entry for entry in browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert not severe, json.dumps(severe, indent=1)


@pytest.mark.slow
def test_figures_for_a_paper(runs, tmp_path):
    if chromium() is None:
        pytest.skip("no Chromium here: apt-get install chromium")
    files = export([runs / "a"], tmp_path, "svg")
    assert {"toy-gap.svg", "toy-sequences.svg"} <= {file.name for file in files}
    for file in files:
        assert file.read_text().startswith("<svg")
