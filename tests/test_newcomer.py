"""A newcomer's session: a problem file of 40 lines, `check`, `run`, the right x printed, a report that opens."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from bilevel_rl import records
from bilevel_rl.cli import main

FILES = Path(__file__).parent / "newcomer"


def least(f, low: float, high: float) -> float:
    """Where a function of one number is least, on a fine grid."""
    grid = np.linspace(low, high, 3001)
    return float(grid[np.argmin([f(x) for x in grid])])


def toll() -> np.ndarray:
    """Both roads lead home again, so the values after them are equal and the choice is one logit."""

    def f(x):
        short = 1 / (1 + np.exp(-0.8 * (0.5 - 0.2 - x) / 0.1))
        return short * 0.8 / 1.8 + 0.2 * x**2  # of all visits, .8 in 1.8 are on a road

    return np.array([least(f, 0, 1)])


def demonstrations() -> np.ndarray:
    """The expert's rewards, with the mean that the regulariser prefers."""
    return np.array([0.3, 0.6, 0.1]) - 1 / 3


def contract() -> np.ndarray:
    """Value iteration of the worker and its visits, written out for two states."""

    def f(x):
        sigmoid = 1 / (1 + np.exp(2 * x))
        P = np.array([[1 - 0.02 - 0.2 * sigmoid, 0.02 + 0.2 * sigmoid], [1 - 0.1 - 0.5 * sigmoid, 0.1 + 0.5 * sigmoid]])
        V, Q = np.zeros(2), np.zeros(2)
        for _ in range(80):
            Q = np.array([0.7, 1.0]) + 0.8 * P @ V
            V = np.array([0.1 * np.log(np.exp(Q / 0.1).sum()), 0.1 * np.log(2) + 0.8 * V.mean()])
        pi = np.exp((Q - Q.max()) / 0.1)
        whole = pi / pi.sum() @ P
        M = np.array([whole, [0.5, 0.5]])
        d = 0.2 * np.linalg.solve(np.eye(2) - 0.8 * M.T, np.array([1.0, 0.0]))
        return -d[0] + 0.1 * x**2

    return np.array([least(f, -1, 2)])


# file -> (solver and its options, the right x or None where brute force knows it, tolerance)
SESSIONS = {
    "toll": (["coupled_penalty", "--samples", "32000"], toll, 0.06),
    "demonstrations": (["coupled_penalty", "--samples", "128000"], demonstrations, 0.06),
    "contract": (["coupled_penalty", "--samples", "64000"], contract, 0.15),
    "lake": (["coupled_penalty", "--samples", "128000"], None, 0.15),
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[] if name == "toll" else pytest.mark.slow) for name in SESSIONS]
)
def test_a_newcomer_finds_the_right_x(name, tmp_path, monkeypatch, capsys):
    given, right, tolerance = SESSIONS[name]
    shutil.copy(FILES / f"{name}.py", tmp_path)
    monkeypatch.chdir(tmp_path)
    assert len(Path(f"{name}.py").read_text().splitlines()) <= 45
    assert main(["check", f"{name}.py"]) == 0
    assert "well posed" in capsys.readouterr().out
    solver, *options = given
    argv = ["run", f"{name}.py", solver, *options, "--runs", "4", "--records", "10", "--out", "mine"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    run = records.Run.read("mine")
    optimum = run.config["optimum"]
    expected = np.array(optimum["x"]) if right is None else right()
    if right is not None and optimum is not None:  # the library's brute force agrees with the one written out here
        np.testing.assert_allclose(optimum["x"], expected, atol=0.002)
    shown = {}
    for line in printed[printed.index("x at the end") :].splitlines():
        for word in run.x_names:
            if line.strip().startswith(f"{word} "):
                numbers = re.findall(r"-?\d+(?:\.\d+)?(?:e-?\d+)?", line.replace(word, "", 1))
                shown[word] = float(numbers[-2])  # best run; the exact answer comes last
    assert list(shown) == list(run.x_names)
    np.testing.assert_allclose(list(shown.values()), expected, atol=tolerance)

    assert main(["report", "mine"]) == 0
    page = Path("mine/report.html").read_text()
    sections = json.loads(re.search(r"const SECTIONS = (.*?);\n", page)[1])
    assert {figure["title"] for figure in sections[0]["figures"]} >= {"Objective", "The answer x", "Where x ends"}
    assert all(word in page for word in run.x_names)
    kinds = {scene["kind"] for scene in sections[0]["scenes"].values()}
    assert kinds == {"grid"} if name == "lake" else kinds <= {"network"}  # networks of up to forty states are drawn
    if name == "lake":  # its map is drawn
        (scene,) = sections[0]["scenes"].values()
        assert (scene["rows"], scene["columns"], len(scene["cells"])) == (4, 4, 16)
