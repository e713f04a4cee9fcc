"""The command line: what each verb prints, and what bad input gets. Errors are compared with the words on file."""

from __future__ import annotations

import dataclasses
import json
import re
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest

from bilevel_rl import cli, records
from bilevel_rl.cli import VERBS, main
from bilevel_rl.commands import screen, sweep, words
from bilevel_rl.launch import execute, index, load, options
from bilevel_rl.report import collect

ECHO = Path(__file__).parent / "loop/echo_toy.py"  # compiles in no time
SMALL = ["--problem.rows", "3", "--problem.columns", "3"]
MINE = """
import jax.numpy as jnp
from bilevel_rl.finite import BilevelProblem, FiniteMDP
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility


class Toll(BilevelProblem):
    def __init__(self, price: float = 0.5):
        self.mdp = FiniteMDP.from_dense([[[0.9, 0.1], [0.1, 0.9]], [[0.9, 0.1], [0.1, 0.9]]], discount=0.9)
        self.objective = VisitationUtility(jnp.array([0.0, 1.0]), weight=0.1)
        self.x0 = jnp.array([price])

    def reward(self, x):
        return jnp.zeros((2, 2)).at[1, :].set(x[0])

    def box(self):
        return jnp.array([0.0]), jnp.array([1.0])


problem = Toll
ready = Toll(0.2)
broken = 3
"""


@pytest.fixture
def mine(tmp_path, monkeypatch):
    """A user's own problem in the current folder."""
    (tmp_path / "my_problem.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A small finished run, started from the command line."""
    folder = tmp_path_factory.mktemp("runs") / "one"
    argv = ["run", "goal_placement", "penalty_actor_critic", *SMALL, "--solver.chains", "4", "--iterations", "40",
            "--records", "4",
            "--runs", "3", "--seed", "5", "--out", str(folder)]  # fmt: skip
    assert main(argv) == 0
    return folder


def said(capsys, argv: list[str], *folders) -> str:
    """Exit code and standard error of a failing call, with paths taken out."""
    code = main([str(word) for word in argv])
    captured = capsys.readouterr()
    assert captured.out == ""
    text = captured.err
    for folder in folders:
        text = text.replace(str(folder), "FOLDER")
    return f"{code} {text.strip()}"


WRONG = {
    "verb": ["rum", "goal_placement"],
    "problem": ["run", "goal_placment"],
    "solver": ["run", "goal_placement", "penalty_actor"],
    "no-problem": ["run", "--runs", "3"],
    "three-words": ["run", "goal_placement", "penalty_actor_critic", "exact_descent"],
    "option": ["run", "goal_placement", "penalty_actor_critic", "--solver.chans", "3", "--iterations", "3"],
    "value": ["run", "goal_placement", "penalty_actor_critic", "--runs", "many", "--iterations", "3"],
    "choice": ["run", "goal_placement", "penalty_actor_critic", "--solver.sampling", "fancy", "--iterations", "3"],
    "length": ["run", "goal_placement", "penalty_actor_critic"],
    "both-lengths": ["run", "goal_placement", "exact_descent", "--iterations", "3", "--samples", "3"],
    "iterations": ["run", "goal_placement", "exact_descent", "--iterations", "0"],
    "runs": ["run", "goal_placement", "exact_descent", "--iterations", "3", "--runs", "0"],
    "samples-of-a-model": ["run", "goal_placement", "exact_descent", "--samples", "100", *SMALL],
    "chains": ["run", "goal_placement", "penalty_actor_critic", "--solver.chains", "0", "--iterations", "3"],
    "schedule": ["run", "goal_placement", "penalty_actor_critic", "--solver.scales.w.initial", "0", "--iterations", "3"],
    "increasing": ["run", "goal_placement", "penalty_actor_critic", "--solver.scales.w.power", "-1", "--iterations", "3"],
    "tau": ["run", "goal_placement", "penalty_actor_critic", "--solver.scales.tau.initial", "0", "--iterations", "3"],
    "discount": ["run", "goal_placement", "exact_descent", "--problem.discount", "1", "--iterations", "3"],
    "slip": ["run", "goal_placement", "exact_descent", "--problem.slip", "2", "--iterations", "3"],
    "x0": ["check", "goal_placement", "--problem.x0", "2", "0"],
    "compare-twice": ["compare", "goal_placement", "--solvers", "exact_descent", "exact_descent"],
    "compare-nan": ["compare", "goal_placement", "--problem.x0", "nan", "0"],
    "diagnose-x0-nan": ["diagnose", "goal_placement", "--problem.x0", "nan", "0"],
    "compare-solver-option": ["compare", "goal_placement", "--solvers", "exact_descent", "--solver.step-size", "3"],
    "compare-setting": ["compare", "goal_placement", "--solvers", "penalty_actor_critic:chans=3"],
    "list": ["list", "solver"],
    "cite": ["cite", "exact_descend"],
    "experiment": ["experiments", "grid"],
    "bench": ["bench", "no-such-benchmark"],
    "tau-nan": ["run", "goal_placement", "exact_descent", "--iterations", "3", "--tau", "nan"],
    "tau-negative": ["run", "goal_placement", "exact_descent", "--iterations", "3", "--tau", "-1"],
    "seed-too-large": ["run", "goal_placement", "exact_descent", "--iterations", "3", "--seed", str(2**64)],
    "runs-too-many": ["run", "goal_placement", "exact_descent", "--iterations", "3", "--runs", str(10**18)],
    "iterations-too-many": ["run", "goal_placement", "exact_descent", "--iterations", str(10**23)],
    "records": ["run", "goal_placement", "exact_descent", "--iterations", "3", "--records", "0"],
    "out-empty": ["run", "goal_placement", "exact_descent", "--iterations", "3", "--out", ""],
    "out-root": ["sweep", "goal_placement", "exact_descent", "--out", "/"],
    "name-too-long": ["run", f"{'a' * 300}.py:problem", "--iterations", "3"],
    "name-with-nul": ["check", "a\0b.py:problem"],
    "problem-seed": ["run", "random_mdp", "exact_descent", "--iterations", "3", "--problem.seed", "-3"],
    "grid-of-words": ["sweep", "goal_placement", "exact_descent", "--grid", "step_size=a"],
    "grid-of-nothing": ["sweep", "goal_placement", "exact_descent", "--grid", "step_sise=1"],
    "grid-infinite": ["sweep", "goal_placement", "exact_descent", "--grid", "step_size=inf"],
    "diagnose-nan": ["diagnose", "goal_placement", *SMALL, "--x", "nan", "0"],
    "diagnose-three": ["diagnose", "goal_placement", *SMALL, "--x", "0", "0", "0"],
    "pilot": ["plan", "goal_placement", "--pilot", "0"],
    "plan-iterations": ["plan", "goal_placement", "--iterations", "-1"],
    "spread": ["search", "goal_placement", "exact_descent", "--iterations", "100", "--spread", "-1"],
    "completion": ["completion", "bahs"],
    "check-three-words": ["check", "goal_placement", "exact_descent", "another"],
    "resume-long": ["resume", "a" * 300],
    "sweep-chains": ["sweep", "goal_placement", *SMALL, "--grid", "momentum=0.5", "--solver.chains", "-2"],
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_bad_input_is_one_sentence_and_exit_code_2(case, capsys, snapshot, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    text = said(capsys, WRONG[case])
    assert text.startswith("2 error: ")
    assert "Traceback" not in text
    assert list(tmp_path.iterdir()) == [tmp_path / "benchmarks"], (
        "nothing may be written before the input is checked"
    )
    # the list of known names grows with the library: its beginning is what matters
    assert re.sub(r"Known: .*?\. ", "Known: ... . ", text) == snapshot


@pytest.mark.parametrize("case", ["missing", "attribute", "type", "import", "exit", "nothing", "factory"])
def test_bad_user_file(case, mine, capsys, snapshot):
    (mine / "raises.py").write_text("1 / 0\n")
    (mine / "leaves.py").write_text("raise SystemExit\n")
    (mine / "makes.py").write_text("def nothing():\n    pass\n\n\ndef fails():\n    raise KeyError('a')\n")
    name = {"missing": "absent.py:problem", "attribute": "my_problem.py:problm", "type": "my_problem.py:broken",
            "import": "raises.py:problem", "exit": "leaves.py:problem", "nothing": "makes.py:nothing",
            "factory": "makes.py:fails"}[case]  # fmt: skip
    assert said(capsys, ["check", name]) == snapshot


def test_an_error_that_nobody_foresaw_is_a_sentence_too(mine, capsys, monkeypatch):
    """With the line of a user's own file where that is its source; with a traceback when asked."""
    branches = MINE.replace("return jnp.zeros((2, 2))", "if x[0] > 0:\n            pass\n        return jnp.zeros((2, 2))")
    (mine / "branches.py").write_text(branches)
    target = load.find_problem("branches.py:problem").build({})
    monkeypatch.delenv(cli.TRACEBACK, raising=False)

    def traced():
        jax.make_jaxpr(lambda x: target.reward(x))(target.x0)
        return 0

    assert cli.answered(traced) == 2
    text = capsys.readouterr().err
    assert text.count("\n") == 1
    assert "branches.py, line 14, in reward: got TracerBoolConversionError" in text
    assert cli.answered(lambda: 1 // 0) == 70
    assert "ZeroDivisionError" in capsys.readouterr().err
    monkeypatch.setenv(cli.TRACEBACK, "1")
    with pytest.raises(ZeroDivisionError):
        cli.answered(lambda: 1 // 0)


def test_every_verb_explains_itself(capsys):
    for verb in VERBS:
        if verb == "llm":  # its own tests
            continue
        try:
            code = main([verb, "--help"])
        except SystemExit as stop:
            code = stop.code or 0
        assert code == 0, verb
        assert len(capsys.readouterr().out) > 40, verb


def test_overview_names_every_verb(capsys):
    assert main([]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {verb} " in text for verb in VERBS)


def test_list_names_everything(capsys):
    assert main(["list"]) == 0
    text = capsys.readouterr().out
    for name in [*load.problem_classes(), *load.solver_classes(), "gridworld"]:
        assert name in text


def test_every_problem_and_solver_has_options_with_help():
    for name in load.problem_classes():
        target = load.find_problem(name)
        assert target.summary
    for name in load.solver_classes():
        target = load.find_solver(name)
        undocumented = [o.name for o in target.options if not o.help]
        assert not undocumented, f"{name}: options without a sentence in Args: {undocumented}"


@pytest.mark.slow
@pytest.mark.parametrize("name", load.problem_classes())
def test_every_problem_is_built_without_an_option(name):
    load.find_problem(name).build({})


def test_run_folder_rebuilds_the_run(finished, tmp_path):
    again = tmp_path / "again"
    assert main(["run", "--from", str(finished), "--out", str(again)]) == 0
    one, two = records.Run.read(finished), records.Run.read(again)
    assert {k: v for k, v in one.config.items() if k != "command"} == {
        k: v for k, v in two.config.items() if k != "command"
    }
    for key, series in one.trace.items():
        np.testing.assert_array_equal(series, two.trace[key], err_msg=key)


def test_config_holds_every_option(finished):
    config = records.read_header(finished)["config"]
    assert config["problem_options"]["rows"] == 3
    assert config["problem_options"]["slip"] == 0.1  # a default, written down
    assert config["solver_options"]["chains"] == 4
    assert config["solver_options"]["scales"]["w"]["power"] == 0.15
    assert config["optimum"]["value"] <= config["optimum"]["grid_value"]


def test_options_survive_json():
    """Objects rebuilt from JSON equal those built directly, nested schedules and tuples included."""
    target = load.find_solver("penalty_actor_critic")
    given = options.set_dotted(target.make, "chains=8,scales.w.initial=0.5,common_noise=True")
    assert given["chains"] == 8
    full = json.loads(json.dumps(execute.complete(target, given)))
    made = target.build(full)
    assert (made.chains, made.scales.w.initial, made.scales.w.power, made.common_noise) == (
        8,
        0.5,
        0.15,
        True,
    )
    walls = load.find_problem("goal_placement").build({"walls": [[0, 1], [2, 2]]})
    assert walls.mdp.n_states == 34


def test_a_new_run_needs_a_folder_of_its_own(finished, capsys, snapshot):
    argv = ["run", "goal_placement", "exact_descent", *SMALL, "--iterations", "2", "--out", finished]
    before = {path.name: path.read_bytes() for path in finished.iterdir()}
    assert said(capsys, argv, finished) == snapshot
    assert {path.name: path.read_bytes() for path in finished.iterdir()} == before


def test_resume_of_a_finished_run_does_nothing(finished, capsys):
    before = {path.name: path.stat().st_mtime_ns for path in finished.iterdir()}
    assert main(["resume", str(finished)]) == 0
    assert "nothing to do" in capsys.readouterr().out
    assert {path.name: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_a_run_made_longer_has_the_bits_of_a_long_one(finished, tmp_path, capsys):
    folder, long = tmp_path / "short", tmp_path / "long"
    shutil.copytree(finished, folder)
    assert main(["resume", str(folder), "--iterations", "60"]) == 0
    config = records.read_header(finished)["config"]
    assert config["record_every"] == 10
    argv = ["run", "goal_placement", "penalty_actor_critic", *SMALL, "--solver.chains", "4", "--iterations", "60",
            "--records", "6", "--runs", "3", "--seed", "5", "--out", str(long)]  # fmt: skip
    assert main(argv) == 0
    one, two = records.Run.read(folder), records.Run.read(long)
    assert one.status["state"] == "finished"
    assert one.config["extended_from"] == 40
    for key, series in two.trace.items():
        np.testing.assert_array_equal(one.trace[key], series, err_msg=key)
    capsys.readouterr()
    assert main(["resume", str(folder), "--iterations", "60"]) == 2
    assert "the run has 60 already" in capsys.readouterr().err


@pytest.mark.slow
def test_the_answer_is_shown(finished, capsys):
    """x with its interval by name, the exact answer beside it, in 80 columns; a small model without a box too."""
    ready, ask = execute.again(finished)
    trace = execute.read_trace(finished)
    screen.console().print(screen.results_table("title", [("a", trace, ready.optimum.value)]))
    screen.show_x([("a", dataclasses.replace(trace, x_names=("row", "column")))], execute.exact_answer(ready))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    row = next(line for line in text.splitlines() if line.split()[:1] == ["row"])
    assert row.split()[-1] == f"{ready.optimum.x[0]:.4g}"
    assert row.split()[-2] == f"{trace.best_x[0]:.4g}"
    free = execute.Ready(load.find_problem("bandit").build({}), ready.solver, None, ready.config | {"problem": "bandit"})
    exact = execute.exact_answer(free)
    assert exact.x.shape == (3,)
    assert "exact_quasi_newton" in exact.how


def test_no_number_of_a_table_is_cut_in_80_columns(capsys):
    heads = ["method", "samples", "objective", "gap", "within 5 %", "to 5 %"]
    numbers = ["50,000", "-0.832 [-0.872, -0.333]", "0.0476 [0.00834, 0.547]", "2 of 5 [0.05, 0.85]", "12,345"]
    screen.console().print(screen.methods_table("t", heads, [["penalty_actor_critic", *numbers]], "", least=()))
    text = capsys.readouterr().out
    assert max(map(len, text.splitlines())) <= 80
    whole = {*heads[:4], "50,000", "-0.832", "-0.333]", "0.0476", "0.547]", "0.85]", "12,345", "penalty_actor_", "critic"}
    assert whole <= set(text.split())


def test_help_shows_what_is_set_and_help_all_the_rest(capsys):
    shown = {}
    for word in ("--help", "--help-all"):
        with pytest.raises(SystemExit):
            main(["run", "goal_placement", "penalty_actor_critic", word])
        shown[word] = capsys.readouterr().out
    assert "more options of penalty_actor_critic: --help-all" in shown["--help"]
    for option, short in (("--solver.chains", True), ("--problem.rows", True), ("--solver.scales.beta.power", False)):
        assert (option in shown["--help"]) == short
        assert option in shown["--help-all"]
    assert "$" not in shown["--help-all"]  # formulas in Unicode


def test_words_read_from_the_source_are_those_of_the_classes():
    for group, classes in (("problems", load.problem_classes()), ("solvers", load.solver_classes())):
        found = index.entries(group, "control") | index.entries(group)  # of both engines: the tables' class
        assert set(found) == set(classes)
        for name, kind in classes.items():
            assert found[name] == load.Target(name, make=kind).summary


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_knows_verbs_problems_and_solvers(shell, capsys):
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    for word in ("compare", "goal_placement", "exact_quasi_newton", "gridworld"):
        assert word in text


@pytest.mark.parametrize("source", ["../evil.py", "/etc/evil.py", "sub/evil.py", "..", 3])
def test_a_folder_runs_no_file_outside_itself(source, finished, tmp_path, capsys):
    """`resume` and `run --from` refuse a header whose source is not a plain name inside the folder."""
    folder, mark = tmp_path / "run", tmp_path / "was-run"
    shutil.copytree(finished, folder)
    (tmp_path / "evil.py").write_text(f"open({str(mark)!r}, 'w')\n" + MINE)
    header = records.read_header(folder)
    header["config"] |= {"problem": "evil.py:problem", "problem_source": source}
    records.write_header(folder, header)
    records.write_json(folder / "status.json", {"state": "stopped", "message": ""})
    for argv in (["resume", folder], ["run", "--from", folder, "--out", tmp_path / "again"]):
        assert "by plain names" in said(capsys, argv, tmp_path)
    assert not mark.exists()


def test_own_problem_is_run_and_kept(mine):
    """tests/test_newcomer.py checks one."""
    assert float(load.find_problem("my_problem.py:ready").build({}).x0[0]) == pytest.approx(0.2)
    argv = ["run", "my_problem.py:problem", "exact_descent", "--iterations", "3", "--runs", "1", "--out", "mine",
            "--no-optimum",
            "--problem.price", "0.4"]  # fmt: skip
    assert main(argv) == 0
    (mine / "my_problem.py").unlink()  # the folder alone is enough
    ready, _ = execute.again(mine / "mine")
    assert float(ready.problem.x0[0]) == 0.4


def test_a_run_says_which_condition_on_the_sequences_its_settings_break(tmp_path, capsys):
    argv = ["run", "bandit", "penalty_actor_critic", "--iterations", "2", "--no-optimum"]
    assert main([*argv, "--solver.scales.w.power", "0.9", "--out", str(tmp_path / "a")]) == 0
    assert "beta must fall faster than w" in " ".join(capsys.readouterr().out.split())
    good = ["--solver.scales.alpha.initial", "0.02"]
    assert main([*argv, *good, "--solver.scales.zeta.initial", "0.01", "--out", str(tmp_path / "b")]) == 0
    assert "order of the sequences" not in capsys.readouterr().out


def test_compare_prints_one_row_a_solver_at_equal_samples(tmp_path, capsys):
    out = tmp_path / "cmp"
    argv = ["compare", "goal_placement", *SMALL, "--solvers", "penalty_actor_critic:chains=4", "exact_descent",
            "--samples", "800", "--iterations", "3", "--runs", "2", "--out", str(out)]  # fmt: skip
    assert main(argv) == 0
    text = capsys.readouterr().out
    assert "800" in text
    runs = {run.name: run for run in map(records.Run.read, records.find_runs(out))}
    assert set(runs) == {"penalty_actor_critic:chains=4", "exact_descent"}
    sampled = runs["penalty_actor_critic:chains=4"]
    assert sampled.trace["samples"][:, -1].tolist() == [800, 800]
    assert "--solver.chains 4" in sampled.config["command"]
    assert "--samples 800" in sampled.config["command"]
    assert "x at the end" in text
    assert "best known" in text
    assert max(map(len, text.splitlines()[:20])) <= 80

    # called again, or resumed: what is finished stays, what was stopped goes on, and the words are the same
    before = (out / "exact_descent/metrics.npz").stat().st_mtime_ns
    shutil.rmtree(out / "penalty_actor_critic-chains=4")
    assert main(["resume", str(out)]) == 0
    again = capsys.readouterr().out
    assert (out / "exact_descent/metrics.npz").stat().st_mtime_ns == before
    assert again[again.index("x at the end") :] == text[text.index("x at the end") :]
    # what a run says of itself, with the name of its row
    assert "penalty_actor_critic:chains=4, order of the sequences: " in " ".join(text.split())
    assert main([*argv[:-4], "--runs", "3", "--out", str(out)]) == 2
    assert "was asked something else" in capsys.readouterr().err
    assert main(["resume", str(out), "--samples", "900"]) == 2


def test_a_plan_says_what_it_found(capsys):
    assert main(["plan", "goal_placement", "penalty_actor_critic", *SMALL, "--pilot", "60", "--iterations", "200"]) == 0
    text = capsys.readouterr().out
    assert "zeta_0" in text
    assert "--solver.scales.zeta.initial" in text
    # nine states are counted sooner than learnt
    assert f"bilevel-rl run goal_placement certainty_equivalence {' '.join(SMALL)} --samples 20480" in " ".join(text.split())
    # the command that it proposes is about the problem that was planned
    assert f"bilevel-rl run goal_placement penalty_actor_critic {' '.join(SMALL)} --iterations 200" in text.splitlines()[-1]


@pytest.mark.slow
def test_a_sweep_says_that_its_choice_lies_at_the_edge(tmp_path, capsys):
    argv = ["sweep", "goal_placement", "penalty_actor_critic", *SMALL, "--grid", "scales.zeta.initial=0.1,0.3",
            "--samples", "200", "--runs", "2", "--out", str(tmp_path / "sweep.json")]  # fmt: skip
    assert main(argv) == 0
    chosen = records.read_json(tmp_path / "sweep.json")
    assert chosen["grid"] == {"scales.zeta.initial": [0.1, 0.3]}
    assert chosen["chosen"] == chosen["settings"][int(np.argmin(chosen["scores"]))]
    verdict = capsys.readouterr().out.splitlines()[-1]
    assert verdict.startswith("verdict: the choice lies at the edge of its grid (scales.zeta.initial=")
    assert f"bilevel-rl sweep goal_placement penalty_actor_critic {' '.join(SMALL)} --grid scales.zeta.initial=" in verdict


def test_an_option_by_the_last_part_of_its_name_is_found(capsys):
    assert main(["run", "goal_placement", "coupled_penalty", *SMALL, "--solver.tau", "0.3"]) == 2
    assert "the nearest known are --solver.scales.tau.initial" in capsys.readouterr().err


@pytest.mark.slow
def test_diagnose_says_what_it_found(tmp_path, capsys):
    assert main(["diagnose", "goal_placement", *SMALL, "--out", str(tmp_path / "d")]) == 0
    assert abs(records.read_json(tmp_path / "d/diagnosis.json")["w_slope"][0] - 1) < 0.05
    assert "Bias of the penalty" in (tmp_path / "d/diagnosis.html").read_text()
    assert capsys.readouterr().out.splitlines()[-1].startswith("verdict: ")


def test_a_sweep_whose_settings_tie_to_the_last_digit_says_that_x_was_held():
    asked = words.Read(sweep.Settings(grid=("zeta=0.1,1",), samples=400), SimpleNamespace(name="mine.py"),
                       SimpleNamespace(name="covariance"), {}, {}, ("mine.py", "--solver.chains", "8"))  # fmt: skip
    found = SimpleNamespace(scores=[0.5, 0.5], settings=[{"zeta": 0.1}, {"zeta": 1.0}], best=0, budget=400)
    said = sweep.verdict(found, asked, {"zeta": [0.1, 1.0]}, asked.settings)
    assert "x has not moved yet" in said
    assert said.endswith("bilevel-rl sweep mine.py covariance --solver.chains 8 --samples 4000 --grid zeta=0.1,1.0")
    found.scores = [0.5, 0.4]
    assert "edge of its grid" in sweep.verdict(found, asked, {"zeta": [0.1, 1.0]}, asked.settings)


def test_a_sweep_that_was_stopped_goes_on(tmp_path, capsys):
    """The folder of a finished sweep loses its result and one program's last records: the same choice and scores."""
    out = tmp_path / "sweep"
    argv = ["sweep", f"{ECHO}:problem", f"{ECHO}:solver", "--grid", "step_size=0.1,0.3,0.9", "--samples", "24",
            "--runs", "1", "--out", str(out)]  # fmt: skip
    assert main(argv) == 0
    first = records.read_json(out / "sweep-result.json")
    (out / "sweep-result.json").unlink()
    records.write_json(out / "settings-0/status.json", {"state": "running", "message": ""})
    assert main(["resume", str(out)]) == 0
    again = records.read_json(out / "sweep-result.json")
    for each in (first, again):  # the second one was made from the folder's own copy
        del each["provenance"], each["problem"]
    assert again == first
    labels = [m.label for s in collect.sections([out]) for m in s.methods]
    assert labels == [f"lead, step_size {v}" for v in (0.1, 0.3, 0.9)]  # settings, not seeds of one method


def test_cite(finished, capsys):
    assert main(["cite", str(finished)]) == 0
    assert "2601.16399" in capsys.readouterr().out


def test_tensorboard_events_hold_the_metrics(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader

    folder = tmp_path / "tb"
    argv = ["run", f"{ECHO}:problem", f"{ECHO}:solver", "--iterations", "4", "--runs", "1", "--records", "4",
            "--tensorboard", "--no-optimum", "--out", str(folder)]  # fmt: skip
    assert main(argv) == 0
    (file,) = (folder / "tensorboard").iterdir()
    values = [
        v for event in EventFileLoader(str(file)).Load() for v in event.summary.value if v.tag == "objective"
    ]
    measured = records.Run.read(folder).trace["objective"][0, 1:]
    got = [v.tensor.float_val[0] if v.HasField("tensor") else v.simple_value for v in values]
    np.testing.assert_allclose(got, measured, rtol=1e-6)


def test_warnings_are_notes_in_a_program_of_its_own(capsys, monkeypatch):
    cli.noted("new episodes begin", UserWarning, "here.py", 3)
    cli.noted("renamed", DeprecationWarning, "here.py", 3)
    assert capsys.readouterr().err == "note: new episodes begin\nnote: renamed (DeprecationWarning, here.py:3)\n"
    shown = []
    monkeypatch.setattr(cli, "answered", lambda work: shown.append(warnings.showwarning) or 0)
    monkeypatch.setattr(warnings, "showwarning", None)
    assert main(["--version"]) == 0  # called from Python: the caller's stay
    assert shown == [None]
    monkeypatch.setattr("sys.argv", ["bilevel-rl", "--version"])
    assert main() == 0
    assert shown[1] is cli.noted
