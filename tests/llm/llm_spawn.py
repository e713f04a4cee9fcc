"""Child processes that start in no time: forked from a server that has imported everything and run nothing."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import socket
import sys
import time
from pathlib import Path

HERE = str(Path(__file__).parent)


def context():
    """A forkserver with the test models preloaded."""
    found = multiprocessing.get_context("forkserver")
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if HERE not in paths:
        os.environ["PYTHONPATH"] = os.pathsep.join([HERE, *filter(None, paths)])
    found.set_forkserver_preload(["llm_models", "llm_spawn"])
    return found


def start(function, *args):
    """Start `function(*args)` in a child; the function must be importable from a module of this folder."""
    process = context().Process(target=function, args=args)
    process.start()
    return process


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def run_together(
    count: int, options: dict, folder: Path, resume: bool = False, kill_at: int | None = None
) -> None:
    """Train in `count` gloo processes; each writes its weights and history to `folder`.

    With `kill_at`, all are killed (SIGKILL) at some moment after the checkpoint of that step was written.
    """

    port = free_port()
    children = [start(train_rank, rank, count, port, options, str(folder), resume) for rank in range(count)]
    if kill_at is not None:
        state = Path(options["out"]) / "checkpoint" / "state.json"
        deadline = time.monotonic() + 100
        while not (state.exists() and json.loads(state.read_text())["step"] >= kill_at):
            assert time.monotonic() < deadline
            time.sleep(0.001)
        time.sleep(random.Random(kill_at).uniform(0, 0.03))
        for child in children:
            child.kill()
    for child in children:
        child.join(120)
        if kill_at is None:
            assert child.exitcode == 0, child.exitcode
        child.close()


def train_rank(rank: int, count: int, port: int, options: dict, folder: str, resume: bool) -> None:
    """One rank's life."""
    join(rank, count, port)
    import torch
    from llm_models import gpt2, trainer, weights
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    sharded, exports = options.pop("fsdp", False) and count > 1, options.pop("exports", False)
    if sharded:
        os.environ |= {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    if options.pop("overlaps", False):
        options["judge"] = Overlapping()
    policy = gpt2(tie_word_embeddings=False) if options.pop("untied", False) else None
    made = trainer(policy, resume=resume, **options)
    assert made.processes.count == count
    if sharded and count == 2:
        halves(made)
    made.train()
    if sharded and count == 2:  # nothing that was borrowed is kept
        halves(made)
    save_file(weights(made), Path(folder) / f"rank{rank}.safetensors")
    (Path(folder) / f"rank{rank}.json").write_text(json.dumps(made.history))
    if exports:
        made.export_policy(Path(folder) / "policy")
        made.export_reward(Path(folder) / "reward")
    if count > 1:
        torch.distributed.destroy_process_group()


class Overlapping:
    """The judge of `llm_models`, which may be asked while something else is computed."""

    overlaps = True

    def judge(self, prompts, completions, shuffle_order=False):
        from llm_models import judge

        return judge(prompts, completions)


def halves(made) -> None:
    """Each of two processes keeps half of every block: of the frozen base, or of all models, with what Adam keeps of it."""
    roles, adapters = made.roles, hasattr(made.roles, "base")
    models = [roles.base] if adapters else [m for m in (*roles.modules.values(), roles.reference) if m is not None]
    trunk = bool(made.config.train)  # what does not train of policies is held in common, whole
    for model in models:
        found = [m for m in model.modules() if type(m).__name__.endswith("GPT2Block")]
        assert len(found) == (0 if model is roles.reward and not hasattr(model, "model") else 2)
        for block in found[trunk:]:
            held = [p for p in block.parameters() if not (adapters and p.requires_grad)]
            assert held
            assert all(2 * p.to_local().numel() == p.numel() for p in held)
    own, pieces = roles.parameters("policy"), roles.pieces
    assert not any(hasattr(p, "to_local") for p in own.values())
    for name, p in own.items():
        ends = not made.roles.modules["policy"].config.tie_word_embeddings if not adapters else False
        divided = ".h." in name or (ends and ("wte" in name or "lm_head" in name))
        assert pieces.divided(p) == (not adapters and divided), name  # of a trunk nothing is among what trains
        assert pieces.shape(p).numel() == p.numel() * (1 + pieces.divided(p))
        for moment in ("exp_avg", "exp_avg_sq"):
            state = made.optimizers["policies"].state.get(p, {})
            assert moment not in state or state[moment].shape == p.shape
    heads = getattr(roles, "heads", {}).values()
    whole = {id(p): p for model in (*models, *heads, roles.reward) for p in model.parameters()}
    kept = sum(p.to_local().nbytes if hasattr(p, "to_local") else p.nbytes for p in whole.values())
    assert made.memory.weights == kept


def begin_rank(rank: int, count: int, port: int, cases: list[dict], folder: str) -> None:
    """Make trainers on one of several ranks, after other draws on each; write what each begins with, or its error.

    `case["ranks"][rank]` differs from the others; `model` is the seed of the policy's weights.
    """
    join(rank, count, port)
    import torch
    from llm_models import gpt2, trainer

    from bilevel_rl.errors import BilevelError

    torch.set_num_threads(1)
    told: list[tuple] = []
    for options in cases:
        mine = {k: v for k, v in options.items() if k != "ranks"} | options.get("ranks", {}).get(rank, {})
        policy = gpt2(mine.pop("model", 0))
        torch.manual_seed(100 + rank)
        try:
            told.append((trainer(policy, **mine).digests, None))
        except BilevelError as error:
            told.append((None, str(error)))
    (Path(folder) / f"begins{rank}.json").write_text(json.dumps(told))
    if count > 1:
        torch.distributed.destroy_process_group()


def join(rank: int, count: int, port: int) -> None:
    """Tell this process of its peers, as torchrun does."""
    os.environ |= {
        "RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port), "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    sys.path.insert(0, HERE)
