"""Every command on the README and in the docs runs as it stands, in a quick form: fewer samples, runs, steps and starts.

The README's run in every test; those of the other pages are slow. What needs a network, a GPU, a folder of the reader's or
another program is listed below with the reason, and nothing else is left out.
"""

from __future__ import annotations

import io
import re
import shlex
import sys
from pathlib import Path

import pytest

from bilevel_rl.cli import main

ROOT = Path(__file__).parents[2]
LESS = {"--samples": 2000, "--iterations": 20, "--runs": 2, "--starts": 2, "--steps": 2}  # at most
MORE = {  # where a command leaves it to a default
    "plan": {"--iterations": "20"}, "llm train": {"--steps": "2"},
}  # fmt: skip
ELSEWHERE = {  # by what stands in a command: why it is not run here
    "--data": "text files of the reader's", "--size large": "an accelerator", "--paper": "hours of a whole study",
    "happy-tweets": "minutes: tests/test_experiments.py", "experiments": "hours: tests/test_experiments.py, in small",
    "--continuation": "minutes: tests/test_cli_search.py", "bench suite": "minutes: tests/test_bench.py",
    "FOLDER": "a policy of the reader's", "--judge": "a judge of the reader's", "wandb": "tests/test_interop.py",
    "--prompt": "tests/llm/test_commands.py samples", "llm chat": "a person: tests/llm/test_talk.py",
    "llm compare": "tests/llm/test_talk.py", "llm export": "tests/llm/test_commands.py",
    "llm resume": "tests/llm/test_commands.py", "runs/mine": "a run of the reader's",
    "offline ": "minutes of collecting: tests/test_cli_offline.py", "--ray 10.": "a cluster: tests/test_machines.py",
    "--slurm": "a cluster: tests/test_slurm.py", "s3://": "a bucket: tests/test_stores.py",
    "config.yaml": "a configuration of the reader's: the README's is run",
}  # fmt: skip


def commands(page: str) -> list[list[str]]:
    """The commands of a page's shell blocks, without comments; lines that go on are one."""
    found = []
    for block in re.findall(r"```(?:bash|text)\n(.*?)```", (ROOT / page).read_text(), re.DOTALL):
        for line in block.replace("\\\n", " ").splitlines():
            words = shlex.split(re.sub(r"\s#\s.*$", "", line)) if line.startswith("bilevel-rl ") else []
            found += [words[1:]] if words else []
    return found


def quick(argv: list[str]) -> list[str]:
    """The same command with less of everything."""
    verb, less = " ".join(argv[: 1 + (argv[0] == "llm")]), list(argv)
    for flag, most in LESS.items():
        if flag in less:
            i = less.index(flag) + 1
            less[i] = str(min(int(less[i]), most))
    for flag, value in MORE.get(verb, {}).items():
        less += [] if flag in less or "--help" in less else [flag, value]
    return less


def elsewhere(argv: list[str]) -> bool:
    return any(words in " ".join(argv) for words in ELSEWHERE)


def run_all(page: str, folder: Path, monkeypatch: pytest.MonkeyPatch, but: tuple[str, ...] = ()) -> int:
    """Run a page's commands in order, but those of some verbs, in a folder with what a clone and the page give a reader."""
    for name in ("examples", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    for name, source in OWN.get(page, {}).items():
        (folder / name).write_text(code(*source))
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    done = 0
    for argv in commands(page):
        if elsewhere(argv) or argv[0] in but:
            continue
        try:
            code_ = main(quick(argv))
        except SystemExit as stop:  # --help
            code_ = stop.code or 0
        assert code_ == 0, f"{page}: bilevel-rl {' '.join(argv)} ended with {code_}"
        done += 1
    return done


def code(page: str, first: int, last: int, end: str = "") -> str:
    """Python blocks of a page, as a reader would save them."""
    return "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / page).read_text(), re.DOTALL)[first:last]) + end


OWN = {  # files that a page asks the reader to save: page -> name -> (page, first block, after the last)
    "docs/adding/tables.md": {"my_problem.py": ("docs/adding/tables.md", 0, 1)},
    "docs/learn/tour.md": {"toll.py": ("docs/learn/tour.md", 0, 1)},
    "docs/learn/designers.md": {"mine.py": ("docs/learn/designers.md", 0, 1)},
    "docs/control/gymnasium.md": {"my_greenhouse.py": ("docs/control/gymnasium.md", 0, 2, "\nproblem = Tariff\n")},
}
PAGES = sorted(
    str(page.relative_to(ROOT)) for page in ROOT.glob("docs/**/*.md")
    if "/results/" not in str(page) and any(not elsewhere(argv) for argv in commands(str(page.relative_to(ROOT))))
)  # fmt: skip


def test_commands_of_the_readme_run(tmp_path, monkeypatch, capsys):
    # tests/test_cli.py tries the first two on a smaller grid: their quick forms compile for half a minute; of the third,
    # which trains for as long, the configuration is read
    from bilevel_rl.llm.config import Config

    assert run_all("README.md", tmp_path, monkeypatch, but=("compare", "plan", "llm")) >= 6
    assert (tmp_path / "runs/report.html").stat().st_size < 2_000_000
    assert "report: runs/report.html" in capsys.readouterr().out
    (train,) = (argv for argv in commands("README.md") if argv[:2] == ["llm", "train"])
    config = Config.load(ROOT / train[2], [f"{train[3].removeprefix('--')}={train[4]}"])
    assert (config.recipe, config.out) == ("grpo", "runs/small")


@pytest.mark.slow
@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_commands_of_the_pages_run(page, tmp_path, monkeypatch):
    assert run_all(page, tmp_path, monkeypatch) >= 1


def test_pages_whose_commands_run_are_known():
    """The pages that show a command are found at all: a change of the blocks' kind would hide them."""
    assert {"docs/index.md", "docs/learn/tour.md", "docs/learn/designers.md", "docs/control/index.md"} <= set(PAGES)


def test_files_named_in_commands_are_there():
    for page in ["README.md", *PAGES]:
        for argv in commands(page):
            for word in argv:
                if word.startswith(("examples/", "benchmarks/", "docs/")):
                    assert (ROOT / word).exists(), f"{page}: {word}"
