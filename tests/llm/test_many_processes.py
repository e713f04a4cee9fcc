"""`llm train` as processes that a launcher starts: one, two and four are the same run, and any of them may be killed."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from llm_models import gpt2, trainer
from llm_spawn import free_port
from safetensors.torch import load_file

from bilevel_rl import versions
from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels import processes
from bilevel_rl.records import read_json, read_status

WORDS = ["pad", "end", "a", "b", "c", "d", "e", "f", "g", "h", "i", "j"]
GOLD = "def sevens(prompts, completions, **_):\n    return [float(c.count('f') + c.count('g')) for c in completions]\n"
# plain steps in 64 bits: another order of sums must not be magnified by Adam's division
COMMON = {
    "steps": 3, "prompts_per_step": 4, "group": 2, "max_new_tokens": 5, "objective": {"gold": 1.0}, "dtype": "float64",
    "optimizer": "sgd", "alpha": 0.1, "zeta": 0.1, "beta": 0.1, "estimator": "tilted", "save_every": 1, "samples_every": 0,
}  # fmt: skip
VARIANTS = {
    "full": {}, "lora": {"backend": "lora"}, "fsdp": {"backend": "lora", "fsdp": True},
    "recipe": {"recipe": "credit=gae, loss=clipped", "epochs": 2}, "paired": {"estimator": "paired"},
    "pieces": {"estimator": "shared", "fsdp": True}, "shared": {"estimator": "shared"},
    "parts": {"estimator": "shared", "backend": "lora", "micro_batch": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A tiny model with a tokenizer of words, prompts, a gold scorer: what a command line reads."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    home = tmp_path_factory.mktemp("many")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="pad"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    PreTrainedTokenizerFast(tokenizer_object=words, pad_token="pad", eos_token="end", unk_token="pad").save_pretrained(
        home / "model"
    )
    gpt2(vocab_size=len(WORDS), bos_token_id=1, eos_token_id=1, pad_token_id=0).save_pretrained(home / "model")
    (home / "prompts.jsonl").write_text("".join(json.dumps({"prompt": p}) + "\n" for p in ("a b", "c", "d e a", "b", "e e")))
    (home / "gold.py").write_text(GOLD)
    return home


def written(place: Path, out: Path, options: dict) -> Path:
    """A configuration's file."""
    config = COMMON | {"policy": str(place / "model"), "prompts": str(place / "prompts.jsonl"),
                       "gold": f"{place / 'gold.py'}:sevens", "out": str(out)} | options  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    path = out.parent / f"{out.name}.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def start(place: Path, out: Path, count: int, options: dict, **environment: str) -> list[subprocess.Popen]:
    """`llm train` on so many ranks, as torchrun starts them."""
    options = dict(options)
    sharded = options.pop("fsdp", False) and count > 1
    path, port, found = written(place, out, options), free_port(), []
    for rank in range(count):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
               "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1"}  # fmt: skip
        if sharded:
            own |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
        command = [sys.executable, "-m", "bilevel_rl", "llm", "train", str(path), "--resume", "auto"]
        found.append(subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=dict(os.environ) | own | environment
        ))  # fmt: skip
    return found


def ended(ranks: list[subprocess.Popen]) -> list[int]:
    """Exit codes; what was said is shown where a test fails."""
    said(ranks)
    return [rank.returncode for rank in ranks]


def said(ranks: list[subprocess.Popen]) -> list[str]:
    """Last words of each rank, waited for."""
    words = [rank.communicate(timeout=400)[0][-800:] for rank in ranks]
    print(*words, sep="\n")
    return words


def weights(out: Path) -> dict[str, torch.Tensor]:
    state = read_json(out / "checkpoint/state.json")
    return load_file(out / "checkpoint" / state["weights"])


def close(one: Path, two: Path, exactly: bool = False) -> None:
    ours, theirs = weights(one), weights(two)
    assert ours.keys() == theirs.keys()
    for key, value in ours.items():
        if exactly:
            assert torch.equal(value, theirs[key]), key
        else:
            torch.testing.assert_close(theirs[key], value, atol=1e-9, rtol=1e-7)


@pytest.mark.slow
@pytest.mark.parametrize("name", VARIANTS)
def test_one_two_and_four_processes_are_one_run(name, place, tmp_path):
    for count in (1, 2, 4):
        assert ended(start(place, tmp_path / str(count), count, VARIANTS[name])) == [0] * count
    first = weights(tmp_path / "1")
    assert any(value.is_floating_point() and value.abs().sum() > 0 for value in first.values())
    close(tmp_path / "1", tmp_path / "2")
    close(tmp_path / "1", tmp_path / "4")


@pytest.mark.slow
@pytest.mark.parametrize("name", ["full", "lora"])
def test_the_command_twice_in_fresh_processes_is_the_same_run(name, place, tmp_path):
    options = VARIANTS[name] | {"estimator": "shared", "recipe": "credit=gae, loss=clipped"}
    for salt in ("1", "2"):
        assert ended(start(place, tmp_path / salt, 1, options, PYTHONHASHSEED=salt)) == [0]
    close(tmp_path / "1", tmp_path / "2", exactly=True)
    assert read_json(tmp_path / "1/digests.json") == read_json(tmp_path / "2/digests.json")
    assert ended(start(place, tmp_path / "3", 1, options | {"seed": 5})) == [0]
    ours, other = weights(tmp_path / "1"), weights(tmp_path / "3")
    assert any(not torch.equal(value, other[key]) for key, value in ours.items())


@pytest.mark.slow
@pytest.mark.parametrize("options", [
    {"backend": "lora"}, {"estimator": "paired", "fsdp": True, "optimizer": "adam", "alpha": 1e-3, "zeta": 1e-3},
], ids=["adapters", "pieces"])  # fmt: skip
def test_a_run_goes_on_with_two_then_one_then_four(options, place, tmp_path):
    assert ended(start(place, tmp_path / "whole", 1, options)) == [0]
    for steps, count in ((1, 2), (2, 1), (3, 4)):
        assert ended(start(place, tmp_path / "parts", count, options | {"steps": steps})) == [0] * count
    close(tmp_path / "whole", tmp_path / "parts")


@pytest.mark.slow
def test_a_signal_to_one_rank_stops_all_at_one_iteration(place, tmp_path):
    out, long = tmp_path / "run", {"steps": 400}
    ranks = start(place, out, 2, long)
    wait_for(out, 2)
    ranks[1].send_signal(signal.SIGTERM)  # preempted; a launcher would pass it on to the other
    assert all(f"go on with: bilevel-rl llm resume {out}" in words for words in said(ranks))
    codes = [rank.returncode for rank in ranks]
    assert codes[1] == 128 + signal.SIGTERM
    assert codes[0] in (128 + signal.SIGINT, 128 + signal.SIGTERM)
    assert read_status(out)["state"] == "stopped"
    done = read_json(out / "checkpoint/state.json")["step"]
    assert len((out / "metrics.jsonl").read_text().splitlines()) == done
    assert ended(start(place, out, 2, {"steps": done + 1})) == [0, 0]
    assert ended(start(place, tmp_path / "whole", 2, {"steps": done + 1})) == [0, 0]
    close(tmp_path / "whole", out, exactly=True)


def wait_for(out: Path, step: int) -> None:
    state = out / "checkpoint/state.json"
    deadline = time.monotonic() + 300
    while not (state.exists() and json.loads(state.read_text())["step"] >= step):
        assert time.monotonic() < deadline, "no checkpoint"
        time.sleep(0.01)


@pytest.mark.slow
def test_killed_at_ten_random_moments_one_rank_or_all(place, tmp_path):
    out, drawn = tmp_path / "run", random.Random(0)
    for attempt in range(10):
        ranks = start(place, out, 2, {"steps": 20})
        wait_for(out, attempt + 1)
        time.sleep(drawn.uniform(0, 0.1))
        victims = ranks if attempt % 2 else [ranks[drawn.randrange(2)]]
        for rank in victims:
            rank.kill()
        codes = ended(ranks)
        assert all(code != 0 for code in codes), "a rank that is left alone does not go on"
        assert read_status(out)["state"] in ("stopped", "failed"), "and says so"
    assert ended(start(place, out, 2, {"steps": 20})) == [0, 0]
    assert ended(start(place, tmp_path / "whole", 2, {"steps": 20})) == [0, 0]
    close(tmp_path / "whole", out, exactly=True)


def test_auto_refuses_the_folder_of_another_run(tmp_path):
    options = {"out": str(tmp_path), "resume": "auto", "steps": 1}
    trainer(**options).train()
    lines = (tmp_path / "metrics.jsonl").read_bytes()
    with pytest.raises(InvalidConfig, match=r"w=0\.5 where"):
        trainer(**options, w=0.5)
    with pytest.raises(InvalidConfig, match="backend='lora' where the checkpoint has 'full'"):
        trainer(**options, backend="lora")
    for old in (tmp_path / "checkpoint").iterdir():  # as if it had been killed before its first checkpoint
        old.unlink()
    with pytest.raises(InvalidConfig, match=r"w=0\.5 where"):
        trainer(**options, w=0.5).train()
    assert (tmp_path / "metrics.jsonl").read_bytes() == lines
    again = trainer(**options)
    again.train()
    assert again.step == 1


def test_a_checkpoint_of_other_versions_is_refused_or_written_down(tmp_path, monkeypatch):
    options = {"out": str(tmp_path), "steps": 1}
    trainer(**options).train()
    here = versions.here()
    monkeypatch.setattr(versions, "here", lambda: here | {"torch": "9.9"})
    monkeypatch.delenv(versions.ACCEPT, raising=False)
    again = {"out": str(tmp_path), "steps": 2, "resume": True}
    with pytest.raises(InvalidConfig, match=r"torch .* there, 9\.9 here"):
        trainer(**again)
    monkeypatch.setenv(versions.ACCEPT, "1")
    trainer(**again).train()
    (continued,) = read_json(tmp_path / "run.json")["provenance"]["continued"]
    assert continued["versions"]["torch"] == "9.9"


def test_a_launcher_that_starts_one_process_is_named(monkeypatch):
    said = []  # not by caplog: a command line that ran before may keep the library's log to itself
    monkeypatch.setattr(processes.log, "warning", lambda text, *values: said.append(text % values if values else text))
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    processes.Processes("cpu")
    assert not said
    monkeypatch.setenv(processes.STARTED, "true")
    processes.Processes("cpu")
    assert [line for line in said if line.startswith("`accelerate launch` has started one process")]


@pytest.mark.slow
def test_accelerate_launch_without_a_gpu_says_that_it_has_started_one_process(place, tmp_path):
    path = written(place, tmp_path / "run", {"steps": 1})
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--num_processes", "2", "--cpu"]
    command = [*launch, "-m", "bilevel_rl", "llm", "train", str(path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    words = " ".join(done.stderr.split())
    assert "`accelerate launch` has started one process" in words
    assert "torchrun --nproc-per-node N -m bilevel_rl llm train CONFIG" in words
