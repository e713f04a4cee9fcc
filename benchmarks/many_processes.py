"""Weak and strong scaling: the language-model trainer on 1, 2 and 4 processes, the suite on 1, 2 and 4 raylets.

    python benchmarks/many_processes.py trainer     tokens a second, share of communication: 5 minutes of a processor
    python benchmarks/many_processes.py suite       cells a minute on a Ray cluster of this machine: 8 minutes

`trainer`: a GPT-2 of two layers of width 128 and 4,096 words, method `bilevel`, estimator `shared`; 64 completions of 32
tokens an iteration, in all (strong) or of each process (weak). A process has one thread. All groups of processes are there
from the start and take turns, an iteration each, so that whatever else the machine does slows all of them alike; two
processes that know nothing of each other take a turn too. Figures are medians over rounds. `efficiency` is a group's
tokens a second over those of the two independent processes in the same round; `processor` the same by processor time.

`suite`: eight cells by `bilevel-rl bench suite --ray`, one processor a raylet, after the cells have been done once, so that
compiled programs are there.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from bilevel_rl import records

RESULTS = Path(__file__).parent / "results" / "many_processes.json"
PROMPTS, GROUP, TOKENS = 16, 4, 32  # of an iteration of one process
TURN, ROUNDS = 1, 13  # iterations of a turn; rounds, of which the first is not counted
GROUPS = {"alone": 1, "independent": 1, "two": 2, "four": 4}  # name -> processes; "independent" works beside "alone"
SOLVERS = ("coupled_penalty", "penalty_actor_critic", "hpgd", "f2sa", "partial_sgd", "nested_penalty", "finite_difference",
           "boltzmann_covariance")  # fmt: skip
RAYLETS = (1, 2, 4)
BASE = "two independent"


# -- the machine ------------------------------------------------------------------------------------------------------


def busy() -> tuple[float, float]:
    """Seconds of all processors so far: at work, and in all."""
    fields = [float(word) for word in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    return sum(fields) - fields[3] - fields[4], sum(fields)


def load_of_others(before: tuple[float, float], ours: float, ticks: int = os.sysconf("SC_CLK_TCK")) -> float:
    """Processors that others kept busy on the mean since `before`.

    Args:
        before: what `busy` said then.
        ours: seconds of a processor that we have used since.
    """
    work, time_ = (b - a for a, b in zip(before, busy(), strict=True))
    return (work / ticks - ours) / (time_ / ticks) * (os.cpu_count() or 1)


# -- the trainer ------------------------------------------------------------------------------------------------------


def rank() -> None:
    """One process of a group: makes its trainers, then does a turn whenever it is told to, and says what it took."""
    import torch
    import torch.distributed as dist
    from llm_speed import gpt2

    from bilevel_rl.llm.config import Config
    from bilevel_rl.llm.trainer import BilevelTrainer

    torch.set_num_threads(1)
    sent = {"seconds": 0.0, "messages": 0, "bytes": 0}

    def timed(call: Any) -> Any:
        def collective(first: Any, *rest: Any, **options: Any) -> Any:
            began = time.perf_counter()
            result = call(first, *rest, **options)
            value = rest[0] if isinstance(first, list) else first
            sent["seconds"] += time.perf_counter() - began
            sent["messages"] += 1
            sent["bytes"] += value.numel() * value.element_size()
            return result

        return collective

    for name in ("all_reduce", "all_gather", "broadcast"):
        setattr(dist, name, timed(getattr(dist, name)))
    def judge(prompts, completions, shuffle_order=False):
        return [0] * len(prompts)

    count, trainers = int(os.environ["WORLD_SIZE"]), {}
    for kind, prompts in (("strong", PROMPTS), ("weak", PROMPTS * count)):
        config = Config(
            steps=10**6, prompts_per_step=prompts, group=GROUP, max_new_tokens=TOKENS, tau=0.05, alpha=1e-4, zeta=1e-4,
            pairs_per_step=8, estimator="shared", device="cpu",
        )  # fmt: skip
        # no stop id: every completion has full length
        trainers[kind] = BilevelTrainer(
            config, gpt2(2, 128), prompts=[list(range(5 + i, 13 + i)) for i in range(64)], judge=judge
        )
    print("ready", flush=True)
    for line in sys.stdin:
        trainer = trainers[line.strip()]
        tokens, began, used = trainer.tokens, time.perf_counter(), time.process_time()
        sent |= {"seconds": 0.0, "messages": 0, "bytes": 0}
        for _ in range(TURN):
            trainer.iterate(trainer.step)
            trainer.step += 1
        wall, cpu = time.perf_counter() - began, time.process_time() - used
        print(json.dumps({"wall": wall, "cpu": cpu, "tokens": trainer.tokens - tokens} | sent), flush=True)


class Group:
    """Processes that are one run, waiting for their turns."""

    def __init__(self, count: int):
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.count = count
        self.ranks = []
        for i in range(count):
            own = {"RANK": str(i), "LOCAL_RANK": str(i), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
                   "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}  # fmt: skip
            self.ranks.append(subprocess.Popen(
                [sys.executable, __file__, "--rank"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env=dict(os.environ) | own,
            ))  # fmt: skip

    def go(self, kind: str) -> None:
        for one in self.ranks:
            assert one.stdin is not None
            one.stdin.write(f"{kind}\n")
            one.stdin.flush()

    def said(self) -> list[str]:
        found = []
        for one in self.ranks:
            assert one.stdout is not None
            line = one.stdout.readline()
            if not line:
                raise SystemExit("a process of the benchmark has died")
            found.append(line)
        return found

    def turn(self) -> list[dict[str, float]]:
        return [json.loads(line) for line in self.said()]

    def end(self) -> None:
        for one in self.ranks:
            one.kill()


def joined(turns: list[dict[str, float]], one_run: bool) -> dict[str, float]:
    """What the processes of a turn did together.

    Args:
        turns: of each process.
        one_run: whether they are one run, each of which counts all tokens.
    """
    wall = max(turn["wall"] for turn in turns)
    tokens = turns[0]["tokens"] if one_run else sum(turn["tokens"] for turn in turns)
    rate = tokens / wall if one_run else sum(turn["tokens"] / turn["wall"] for turn in turns)
    return {
        "tokens_a_second": rate, "tokens_a_processor_second": tokens / sum(turn["cpu"] for turn in turns),
        "communication": sum(turn["seconds"] for turn in turns) / sum(turn["wall"] for turn in turns),
        "messages": turns[0]["messages"] / TURN, "mib": turns[0]["bytes"] / TURN / 2**20,
        "cpu": sum(turn["cpu"] for turn in turns),
    }  # fmt: skip


def trainer(rounds: int) -> dict[str, Any]:
    """Every group's figures, in turns."""
    groups = {name: Group(count) for name, count in GROUPS.items()}
    try:
        for group in groups.values():
            group.said()
        plan = {
            "alone": (("alone",), "strong"), "two independent": (("alone", "independent"), "strong"),
            "2, strong": (("two",), "strong"), "2, weak": (("two",), "weak"),
            "4, strong": (("four",), "strong"), "4, weak": (("four",), "weak"),
        }  # fmt: skip
        found: dict[str, list[dict[str, float]]] = {name: [] for name in plan}
        before, ours = busy(), 0.0
        for number in range(rounds):
            for name, (members, kind) in plan.items():
                for member in members:
                    groups[member].go(kind)
                turns = [turn for member in members for turn in groups[member].turn()]
                result = joined(turns, one_run=len(members) == 1)
                ours += result["cpu"]
                if number:
                    found[name].append(result)
            print(number, {name: round(r[-1]["tokens_a_second"]) for name, r in found.items() if r}, flush=True)
        others = load_of_others(before, ours)
    finally:
        for group in groups.values():
            group.end()
    return summary(found) | {"busy_with_others": round(others, 2), "rounds": rounds - 1}


def summary(found: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians over rounds, and of ratios within a round."""
    rows = []
    for name, results in found.items():
        row: dict[str, Any] = {"run": name}
        for key in ("tokens_a_second", "tokens_a_processor_second", "communication", "messages", "mib"):
            row[key] = round(statistics.median(result[key] for result in results), 3)
        for key, kind in (("efficiency", "tokens_a_second"), ("processor", "tokens_a_processor_second")):
            ratios = [result[kind] / one[kind] for result, one in zip(results, found[BASE], strict=True)]
            row[key] = [round(value, 3) for value in (statistics.median(ratios), min(ratios), max(ratios))]
        rows.append(row)
    return {"rows": rows}


# -- the suite --------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def cluster(raylets: int) -> Any:
    """A Ray cluster of this machine: so many raylets of one processor each; yields its address."""
    import psutil

    ray = str(Path(sys.executable).with_name("ray"))
    with tempfile.TemporaryDirectory(prefix="br", ignore_cleanup_errors=True) as place, socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        probe.close()
        address, nodes = f"127.0.0.1:{port}", []
        try:
            for i in range(raylets):
                head = ["--head", f"--port={port}", f"--temp-dir={place}", "--include-dashboard=false"]
                nodes.append(subprocess.Popen(
                    [ray, "start", *([f"--address={address}"] if i else head), "--num-cpus=1", "--block",
                     "--disable-usage-stats"],
                    stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
                    env=dict(os.environ) | {"RAY_worker_niceness": "0"},
                ))  # fmt: skip
                time.sleep(8 if i == 0 else 4)
            yield address
        finally:
            for node in nodes:
                with contextlib.suppress(psutil.Error):
                    found = psutil.Process(node.pid)
                    for one in [*found.children(recursive=True), found]:
                        with contextlib.suppress(psutil.Error):
                            one.kill()
                node.wait(20)


def cells(out: Path, *more: str) -> float:
    """Seconds from the first cell's start to the end of the last."""
    command = [sys.executable, "-m", "bilevel_rl", "bench", "suite", "--problems", "goal_placement", "--solvers", *SOLVERS,
               "--runs", "4", "--samples", "20000", "--out", str(out), *more]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
    began = ended = 0.0
    assert process.stdout is not None
    for line in process.stdout:
        print("   ", line.rstrip(), flush=True)
        if line.startswith("running"):
            began = began or time.perf_counter()
        if line.startswith(("done", "failed")):
            ended = time.perf_counter()
    if process.wait():
        raise SystemExit(f"the suite has ended with {process.returncode}")
    return ended - began


def suite(rounds: int) -> dict[str, Any]:
    """Cells a minute by raylets; once."""
    rows = []
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        cells(place / "here")  # compiled programs are kept from now on
        for raylets in RAYLETS:
            before = busy()
            with cluster(raylets) as address:
                seconds = cells(place / str(raylets), "--ray", address)
            work, all_ = (b - a for a, b in zip(before, busy(), strict=True))
            rows.append({
                "raylets": raylets, "cells": len(SOLVERS), "seconds": round(seconds, 1),
                "cells_a_minute": round(60 * len(SOLVERS) / seconds, 2),
                "busy_processors": round(work / all_ * (os.cpu_count() or 1), 2),
            })  # fmt: skip
            print(rows[-1], flush=True)
            shutil.rmtree(place / str(raylets))
    return {"rows": rows}


PARTS = {"trainer": trainer, "suite": suite}


def main() -> None:
    """Measure what is asked for and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help="trainer, suite; both where none is named")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.rank:
        rank()
        return
    facts = records.read_json(RESULTS) if RESULTS.exists() else {}
    for part in options.parts or PARTS:
        facts[part] = PARTS[part](options.rounds)
        facts["hardware"] = records.hardware()
        facts["provenance"] = records.provenance("python benchmarks/many_processes.py")
        records.write_json(RESULTS, facts)
        print(json.dumps(facts[part], indent=1))


if __name__ == "__main__":
    main()
