"""What bad input, damaged run folders and kills do: no traceback, nothing undetected, the same bits.

    python benchmarks/reliability.py [--inputs N] [--corruptions N] [--kills N] [--seed S] [--keep FILE]

Every generated input has at least one part that is wrong for certain, so each must end with one sentence and the exit code
2 (1 where the answer is no). A damaged file counts as harmless only where its content is the same as before. With `--keep`
what was found is written there beside what is there already, kills after every run: a second call goes on with them.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl import records
from bilevel_rl.cli import main
from bilevel_rl.commands import VERBS
from bilevel_rl.errors import BilevelError, RunNotFound

HANG = 120  # seconds after which an input is said to hang
SMALL = ["--problem.rows", "3", "--problem.columns", "3"]
WORDS = ["", "a", "1.5.2", "None", "[]", "1,2", "0x", "é", "--", "1e", "nan nan"]
# option -> values that are wrong whatever the problem
SETTINGS: dict[str, list[str]] = {
    "iterations": ["0", "-1", "a", "1.5", "", str(10**23)], "samples": ["0", "-5", "many", "nan"],
    "runs": ["0", "-1", "1e18", str(10**18)], "seed": ["-1", str(2**64), "a", "1.5"], "records": ["0", "-3", "x"],
    "tau": ["nan", "-1", "inf", "a", ""], "out": ["", "/", "a" * 300, "a\0b"],
}  # fmt: skip
PROBLEMS: dict[str, dict[str, list[str]]] = {
    "goal_placement": {"rows": ["0", "-1", "a"], "columns": ["0", "-2", ""], "slip": ["2", "-1", "nan", "x"],
                       "discount": ["1", "-0.1", "nan", "2"], "x0": ["a b", "9 9", "nan 0"]},
    "random_mdp": {"states": ["0", "-1", "a"], "seed": ["-3", "a"], "discount": ["1", "nan", "-1"], "actions": ["0", "-1"]},
    "frozen_lake": {"discount": ["1", "nan", "2", "a"]},
}  # fmt: skip
SOLVERS: dict[str, dict[str, list[str]]] = {
    "penalty_actor_critic": {"chains": ["0", "-1", "1.5", "a"], "scales.w.initial": ["0", "-1", "nan", "a"],
                             "scales.zeta.power": ["-1", "nan"], "scales.tau.initial": ["0", "nan"], "sampling": ["fancy"]},
    "coupled_penalty": {"chains": ["0", "-2", "x"], "scales.w.initial": ["0", "nan"], "momentum": ["1", "-1", "nan"]},
    "exact_descent": {"step_size": ["0", "-1", "nan", "a"], "tau": ["nan", "-1"]},
}  # fmt: skip
OWN = """
import jax.numpy as jnp
from bilevel_rl.finite import BilevelProblem, FiniteMDP
from bilevel_rl.finite.objectives.visitation_utility import VisitationUtility


class Mine(BilevelProblem):
    def __init__(self):
        self.mdp = FiniteMDP.from_dense([[[.9, .1], [.1, .9]], [[.9, .1], [.1, .9]]], discount=.9)
        self.objective = VisitationUtility(jnp.array([0., 1.]), weight=.1)
        self.x0 = jnp.array([.5])

    def reward(self, x):
        return jnp.zeros((2, 2)).at[1, :].set(x[0])


problem = Mine
"""
# what is wrong with a problem file -> (what stands there, what is put in its place)
FILES: dict[str, tuple[str, str]] = {
    "raises": ("import jax.numpy", "1 / 0\nimport jax.numpy"), "syntax": ("class Mine", "clas Mine"),
    "exits": ("import jax.numpy", "raise SystemExit\nimport jax.numpy"),
    "no problem": ("problem = Mine", "other = Mine"), "a number": ("problem = Mine", "problem = 3"),
    "a factory of nothing": ("problem = Mine", "def problem():\n    pass"),
    "a factory that raises": ("problem = Mine", "def problem():\n    raise KeyError(1)"),
    "a constructor that raises": ("self.x0 = jnp.array([.5])", "raise RuntimeError('no')"),
    "rows that do not sum": ("[[[.9, .1]", "[[[.9, .2]"), "a negative probability": ("[[[.9, .1]", "[[[1.1, -.1]"),
    "a discount of one": ("discount=.9", "discount=1."), "x0 a word": ("jnp.array([.5])", "'x'"),
    "x0 of NaN": ("jnp.array([.5])", "jnp.array([jnp.nan])"), "x0 of integers": ("jnp.array([.5])", "jnp.array([1])"),
    "an empty x0": ("jnp.array([.5])", "jnp.zeros(0)"), "x0 a matrix": ("jnp.array([.5])", "jnp.ones((1, 1))"),
    "no reward": ("def reward", "def award"),
    "a reward that raises": ("return jnp.zeros", "raise ValueError('no')\n        return jnp.zeros"),
    "a reward of another shape": ("jnp.zeros((2, 2)).at[1, :]", "jnp.zeros((3, 2)).at[1, :]"),
    "a reward of NaN": (".set(x[0])", ".set(jnp.nan)"), "a reward with a step": (".set(x[0])", ".set(jnp.round(7 * x[0]))"),
    "a reward that branches": ("return jnp.zeros", "if x[0] > 0:\n            pass\n        return jnp.zeros"),
    "no objective": ("VisitationUtility(jnp.array([0., 1.]), weight=.1)", "None"),
    "an objective of another size": ("jnp.array([0., 1.])", "jnp.array([0., 1., 2.])"),
}  # fmt: skip


def edited(chance: random.Random, name: str) -> str:
    """A name with one letter doubled, dropped or changed: no name of the library has such a neighbour."""
    at = chance.randrange(len(name))
    return chance.choice([name[:at] + name[at] + name[at:], name[:at] + "q" + name[at + 1 :], name[:at] + name[at + 1 :]])


def bad_input(chance: random.Random, files: list[Path]) -> list[str]:
    """The words of a call with at least one that is wrong."""
    verb = chance.choice(["run", "check", "plan", "sweep", "search", "diagnose", "compare"])
    problem, solver = chance.choice(sorted(PROBLEMS)), chance.choice(sorted(SOLVERS))
    words = [verb, problem] + ([] if verb == "compare" else [solver])
    length = {"run": ["--iterations", "2"], "search": ["--iterations", "40"]}.get(verb, [])
    kinds = ("verb", "problem", "solver", "option", "setting", "problem option", "solver option", "words", "file", "folder")
    kind = chance.choice([*kinds, "value"])
    if kind == "verb":
        return [edited(chance, verb), *words[1:]]
    if kind == "problem":
        return [verb, edited(chance, problem), *words[2:], *length]
    if kind == "solver" and verb != "compare":
        return [verb, problem, edited(chance, solver), *length]
    if kind == "option":
        return [*words, *length, f"--{edited(chance, 'iterations')}", "3"]
    if kind == "setting":
        some = {"run": sorted(SETTINGS), "search": ["out", "seed"], "sweep": ["out", "seed"]}
        name = chance.choice(some.get(verb, ["x"]))
        rest = [] if name in ("iterations", "samples") else length
        return [*words, *rest, f"--{name}", chance.choice(SETTINGS.get(name, ["1"]))]
    if kind == "problem option":
        name = chance.choice(sorted(PROBLEMS[problem]))
        return [*words, *length, f"--problem.{name}", *chance.choice(PROBLEMS[problem][name]).split(" ")]
    if kind == "solver option" and verb not in ("compare", "diagnose"):
        name = chance.choice(sorted(SOLVERS[solver]))
        return [*words, *length, f"--solver.{name}", chance.choice(SOLVERS[solver][name])]
    if kind == "words":
        return [verb, problem, solver, "another", *length]
    if kind == "file":
        return [chance.choice(["check", "run"]), f"{chance.choice(files)}:problem"] + ["--iterations", "2"] * (verb == "run")
    if kind == "folder":
        return [chance.choice(["resume", "report"]), chance.choice(["nowhere", "a" * 300, "a\0b", "/dev/null", ""])]
    return [*words, *length, "--problem.discount", chance.choice(WORDS)]


def outcome(argv: list[str]) -> tuple[str, str]:
    """How a call ended: refused, no, accepted, traceback or hang; and what it said last."""

    def late(number, frame):
        raise TimeoutError

    said, printed = io.StringIO(), io.StringIO()
    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(HANG)
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(printed):
            code = main(argv)
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 0
    except TimeoutError:
        return "hang", ""
    except BaseException:
        return "traceback", traceback.format_exc().strip().splitlines()[-1]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    text = said.getvalue()
    if "Traceback" in text:
        return "traceback", text.strip().splitlines()[-1]
    names = {2: "refused", 1: "no", 0: "accepted"}
    return names.get(code, f"code {code}"), (text or printed.getvalue()).strip()[-200:]


def inputs(count: int, seed: int) -> dict[str, Any]:
    """Generated bad inputs, and those that did not end with a sentence."""
    chance, counts, odd = random.Random(seed), Counter(), []
    with tempfile.TemporaryDirectory() as place, contextlib.chdir(place):
        files = []
        for name, (old, new) in FILES.items():
            assert old in OWN, name
            path = Path(f"{name.replace(' ', '_')}.py")
            path.write_text(OWN.replace(old, new, 1))
            files.append(path)
        seen: dict[tuple[str, ...], tuple[str, str]] = {}
        for _ in range(count):
            argv = bad_input(chance, files)
            if tuple(argv) not in seen:
                seen[tuple(argv)] = outcome(argv)
            ended, said = seen[tuple(argv)]
            counts[ended] += 1
        odd = [{"argv": [w[:60] for w in argv], "ended": ended, "said": said}
               for argv, (ended, said) in seen.items() if ended not in ("refused", "no")]  # fmt: skip
        for path in Path(place).glob("runs*"):
            shutil.rmtree(path)
    return {"generated": count, "different": len(seen), "ended": dict(counts), "not_refused": odd}


# -- damaged folders ------------------------------------------------------------------------------------------------


def a_run(folder: Path) -> None:
    """A finished run with everything that a folder can hold."""
    code = main(["run", "goal_placement", "exact_descent", *SMALL, "--iterations", "6", "--records", "6", "--runs", "2",
                 "--out", str(folder)])  # fmt: skip
    assert code == 0


def damaged(chance: random.Random, folder: Path) -> str:
    """Damage one file of a folder; returns what was done."""
    path = folder / chance.choice(["run.json", "status.json", "metrics.npz", "scene.npz", "checkpoint.npz"])
    data = bytearray(path.read_bytes())
    how = chance.choice(["cut", "flip", "flip", "flip", "zeros", "empty", "lost", "noise", "other", "value"])
    at = chance.randrange(len(data))
    if how == "value" and path.suffix == ".json":
        content = json.loads(data)
        key = chance.choice(sorted(content))
        content[key] = chance.choice([None, [], {}, 7, "x", -1.5])
        path.write_text(json.dumps(content))
    elif how == "lost":
        path.unlink()
    elif how == "other":
        other = chance.choice([p for p in folder.iterdir() if p.is_file() and p != path and p.suffix in (".json", ".npz")])
        path.write_bytes(other.read_bytes())
    else:
        if how == "flip" or how == "value":
            data[at] ^= 1 << chance.randrange(8)
        size = chance.randrange(1, 200)
        new = {"cut": data[:at], "empty": b"", "noise": chance.randbytes(len(data)),
               "zeros": data[:at] + bytes(size) + data[at + size :]}.get(how, data)  # fmt: skip
        path.write_bytes(bytes(new))
    return f"{how} {path.name}"


def same(folder: Path, whole: Path) -> bool:
    """Whether every file says what it said before: equal JSON, equal arrays."""
    for path in whole.iterdir():
        now = folder / path.name
        if path.suffix == ".json":
            try:
                if json.loads(now.read_text()) != json.loads(path.read_text()):
                    return False
            except (OSError, ValueError):
                return False
        elif path.suffix == ".npz":
            try:
                one, two = records.read_arrays(path), records.read_arrays(now)
            except RunNotFound:
                return False
            if one.keys() != two.keys():
                return False
            if any(one[k].dtype != two[k].dtype or one[k].tobytes() != two[k].tobytes() for k in one):
                return False
    return True


def noticed(folder: Path) -> bool:
    """Whether the report or `resume` says that something is wrong."""
    from bilevel_rl.launch import execute
    from bilevel_rl.report import collect, scenes

    try:
        found = collect.read([folder])
        if found.trouble or any(m.trouble for s in found.sections for m in s.methods):
            return True
        if not (folder / "scene.npz").exists() or any(scenes.scene(m) is None for s in found.sections for m in s.methods):
            return True
        if not (folder / "checkpoint.npz").exists():
            return True
        ready, _ = execute.again(folder)
        ready.start(folder, resume=True)
    except BilevelError:
        return True
    return False


def corruptions(count: int, seed: int) -> dict[str, Any]:
    """Damaged folders: noticed, harmless, or neither."""
    chance, counts, missed = random.Random(seed), Counter(), []
    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        with contextlib.redirect_stdout(io.StringIO()):
            a_run(whole)
        for i in range(count):
            folder = Path(place) / f"run{i}"
            shutil.copytree(whole, folder)
            how = damaged(chance, folder)
            try:
                with contextlib.redirect_stderr(io.StringIO()), contextlib.redirect_stdout(io.StringIO()):
                    if same(folder, whole):
                        ended = "harmless"
                    else:
                        ended = "noticed" if noticed(folder) else "missed"
            except Exception:
                ended, how = "traceback", f"{how}: {traceback.format_exc().strip().splitlines()[-1]}"
            counts[ended] += 1
            if ended in ("missed", "traceback"):
                missed.append(how)
            shutil.rmtree(folder)
    return {"damaged": count, "ended": dict(counts), "not_noticed": missed}


# -- kills ------------------------------------------------------------------------------------------------------------

KILLED = ["run", "goal_placement", "penalty_actor_critic", *SMALL, "--no-optimum", "--solver.chains", "2", "--iterations",
          "3000", "--records", "60", "--runs", "3", "--seed", "11"]  # fmt: skip
START = """
import contextlib, os, sys
from bilevel_rl.loop import checkpoint
from bilevel_rl.cli import main
checkpoint.SECONDS = 0.0
with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
    code = main(argv)
sys.exit(code)
"""
IMPORTED = ["bilevel_rl.cli", "bilevel_rl.commands.run", "bilevel_rl.commands.resume", "bilevel_rl.launch.execute",
            "bilevel_rl.finite.solvers", "bilevel_rl.finite.problems"]  # fmt: skip


def kills(
    count: int, seed: int, ended: dict[str, dict[str, Any]] | None = None,
    save: Callable[[dict[str, Any]], None] = lambda facts: None,
) -> dict[str, Any]:  # fmt: skip
    """SIGKILLs at random moments after a process's first checkpoint; every run must end with the bits of a whole one.

    Processes are forked from one that has imported the library and done nothing else, and share the programs that they
    compile, so that a kill is cheap; those of the run that is never killed are compiled afresh.

    Args:
        count: at least so many kills.
        seed: of the moments; run i of a seed has its own, so that a call goes on where an earlier one stopped.
        ended: what became of each run, by its number; filled.
        save: called after each run with what is known so far.
    """
    ended = {} if ended is None else ended

    context = multiprocessing.get_context("forkserver")

    def begin(argv: list[str]) -> Any:
        process = context.Process(target=exec, args=(START, {"argv": argv}))
        process.start()
        return process

    def wait(process: Any) -> int | None:
        process.join()
        return process.exitcode

    def summary() -> dict[str, Any]:
        runs = list(ended.values())
        return {
            "kills": sum(run["kills"] for run in runs), "runs": len(runs),
            "differing": sum(not run["same"] for run in runs), "ended": ended,
        }  # fmt: skip

    with tempfile.TemporaryDirectory() as place:
        whole = Path(place) / "whole"
        os.environ |= {"JAX_COMPILATION_CACHE_DIR": f"{place}/compiled", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        context.set_forkserver_preload(IMPORTED)
        assert wait(begin([*KILLED, "--out", str(whole)])) == 0
        expected = records.read_arrays(whole / "metrics.npz")
        while summary()["kills"] < count:
            name, done = str(len(ended)), 0
            chance, folder = random.Random(f"{seed}, {name}"), Path(place) / f"run{name}"
            argv = [*KILLED, "--out", str(folder)]
            for _ in range(chance.randrange(1, 4)):
                process, seen = begin(argv), folder / "checkpoint.npz"
                before = seen.stat().st_mtime_ns if seen.exists() else None
                while process.is_alive() and (not seen.exists() or seen.stat().st_mtime_ns == before):
                    time.sleep(0.002)
                time.sleep(chance.uniform(0, 0.5))
                if process.is_alive():
                    process.kill()
                    done += 1
                process.join()
                argv = ["resume", str(folder)]
            code = wait(begin(argv))
            found = records.read_arrays(folder / "metrics.npz")
            equal = found.keys() == expected.keys() and all(np.array_equal(found[k], expected[k]) for k in found)
            ended[name] = {"kills": done, "same": bool(code == 0 and equal)}
            save(summary())
            shutil.rmtree(folder)
    return summary()


def study(args: argparse.Namespace) -> dict[str, Any]:
    """Those of the three that are asked for; with a file to keep them in, what it holds of the others stays."""
    assert "run" in VERBS
    there = args.keep is not None and args.keep.exists()
    found: dict[str, Any] = {"seed": args.seed} | (json.loads(args.keep.read_text()) if there else {})

    def keep(name: str, facts: dict[str, Any]) -> None:
        found["provenance"] = records.provenance("python benchmarks/reliability.py " + " ".join(sys.argv[1:]))
        found[name] = facts | {"command": found["provenance"]["command"]}
        if args.keep is not None:
            records.write_json(args.keep, found)

    if args.inputs:
        keep("inputs", inputs(args.inputs, args.seed))
    if args.corruptions:
        keep("corruptions", corruptions(args.corruptions, args.seed))
    if args.kills:
        keep("kills", kills(args.kills, args.seed, found.get("kills", {}).get("ended"), lambda facts: keep("kills", facts)))
    for name in ("inputs", "corruptions", "kills"):
        facts = found.get(name, {})
        shown = ("kills", "runs", "differing") if name == "kills" else ("ended",)
        print(name, {key: facts[key] for key in shown if key in facts}, flush=True)
        for one in [*facts.get("not_refused", []), *facts.get("not_noticed", [])]:
            print("  ", one, flush=True)
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=3000)
    parser.add_argument("--corruptions", type=int, default=200)
    parser.add_argument("--kills", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="a JSON file for the results, such as benchmarks/results/reliability.json")
    study(parser.parse_args())
