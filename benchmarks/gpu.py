r"""On a GPU: what the recipe for one card takes against what `llm plan` foresaw, writing, TRL's iteration, the JAX engines.

    python benchmarks/gpu.py                       every part in a process of its own; some eight minutes of an H100
    python benchmarks/gpu.py recipe --sizes 0.5B   one part
    python benchmarks/gpu.py --tiny                small models and few tokens, to see that it runs; written nowhere

Models have random weights in the architecture of Qwen2.5: nothing is downloaded, and cost does not depend on what they say.
Times are of the clock, between synchronisations; memory is the allocator's peak. Parts:

* recipe: `examples/configs/gpu_24gb.yaml`, each size: seconds of an iteration by its phases, peak memory; and foreseen: what
  `llm plan` and the estimate at a run's start say of it (this part needs no GPU);
* writing: tokens a second of our sampler, with its step captured and as written, and of transformers' `generate`;
* trl: seconds and memory of an optimiser's step of TRL's GRPO with adapters of the same rank, and of ours (`plain` with the
  recipe `grpo`, and two levels by `tilted`): same model, prompts, completions, micro-batches, recomputation;
* tables: nanoseconds a transition of the paper's algorithm by chains, and of `coupled_penalty` by states, GPU and CPU;
* followers: microseconds a seed-update of a SAC follower with the covariance estimator by seeds, GPU and CPU.

Writes `results/gpu.json`.
"""

from __future__ import annotations

import argparse
import dataclasses
import gc
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("XLA_PYTHON_CLIENT_PREALLOCATE", "false")  # the two frameworks share the card
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

ROOT = Path(__file__).parents[1]
FILE = ROOT / "benchmarks" / "results" / "gpu.json"
GIB = 2**30
Found = Iterator[tuple[str, Any]]  # results as they come
# seconds after which a part is given up
PARTS = {"foreseen": 300, "recipe": 300, "writing": 200, "trl": 200, "tables": 200, "followers": 200}


# -- language models ------------------------------------------------------------------------------------------------------


def device() -> Any:
    """The GPU, or the CPU of a trial run."""
    import torch

    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def shape_of(size: str) -> Any:
    """The architecture of a size; "tiny" for trials."""
    from bilevel_rl.llm import plan

    if size != "tiny":
        return plan.known(size)
    found = plan.known("0.5B")
    found.hidden_size, found.intermediate_size, found.num_hidden_layers = 64, 128, 2
    found.num_attention_heads, found.num_key_value_heads, found.vocab_size, found.layer_types = 4, 2, 512, None
    return type(found)(**{k: v for k, v in found.to_dict().items() if k not in ("layer_types", "max_window_layers")})


def model_of(size: str) -> Any:
    """Random weights in bfloat16."""
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    torch.set_default_dtype(torch.bfloat16)
    try:
        with device():
            return AutoModelForCausalLM.from_config(shape_of(size)).eval()
    finally:
        torch.set_default_dtype(torch.float32)


def prompts_of(size: str, count: int, tokens: int) -> list[list[int]]:
    import torch

    generator = torch.Generator().manual_seed(1)
    return torch.randint(3, min(4000, shape_of(size).vocab_size), (count, tokens), generator=generator).tolist()


def settled() -> float:
    """The clock, once the card is idle."""
    import torch

    if device().type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def fresh() -> None:
    """Forget the peak of memory, and what is no longer held."""
    import torch

    gc.collect()
    if device().type == "cuda":
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def peak() -> float:
    """GiB."""
    import torch

    return torch.cuda.max_memory_allocated() / GIB if device().type == "cuda" else 0.0


def first(prompts: Any, completions: Any, shuffle_order: bool = False) -> list[int]:
    """A judge that costs nothing."""
    return [i % 2 for i in range(len(prompts))]


def alternating(completion_ids: Any, **_: Any) -> list[float]:
    """A gold score that costs nothing."""
    return [float(i % 2) for i in range(len(completion_ids))]


def trainer_of(size: str, tiny: bool, **changes: Any) -> Any:
    """The recipe's trainer on a model of random weights, timed."""
    from bilevel_rl.llm.config import Config
    from bilevel_rl.llm.trainer import BilevelTrainer

    config = Config.load(str(ROOT / "examples/configs/gpu_24gb.yaml"))
    small = {"max_new_tokens": 8, "max_prompt_tokens": 8, "prompts_per_step": 4, "micro_batch": 4, "replay_pairs": 4,
             "pairs_per_step": 4} if tiny else {}  # fmt: skip
    # a model object has its attention already (sdpa)
    few = {"loggers": [], "eval_every": 0, "save_every": 0, "samples_every": 0, "steps": 100, "attention": ""}
    config = dataclasses.replace(config, **(few | small | changes))
    prompts = prompts_of(size, config.prompts_per_step, config.max_prompt_tokens)
    given = {"reward": alternating} if config.method == "plain" else {"judge": first}
    trainer = BilevelTrainer(config, model_of(size), prompts=prompts, gold=alternating, **given)
    trainer.spent = {}

    def timed(name: str, call: Any) -> Any:
        def inner(*args: Any, **kwargs: Any) -> Any:
            began = settled()
            try:
                return call(*args, **kwargs)
            finally:
                trainer.spent[name] = trainer.spent.get(name, 0.0) + settled() - began

        return inner

    for name, label in {"sample": "writing", "score": "scoring", "ask": "asking", "learn": "learning"}.items():
        setattr(trainer, name, timed(label, getattr(trainer, name)))
    trainer.leader.hyper_gradient = timed("hyper-gradient", trainer.leader.hyper_gradient)
    return trainer


def iterations(trainer: Any, count: int) -> dict[str, float]:
    """Median seconds of an iteration, and of its phases, after one that warms up."""
    found: list[dict[str, float]] = []
    for k in range(count + 1):
        trainer.spent, began = {}, settled()
        trainer.iterate(trainer.step)
        trainer.step += 1
        if k:
            found.append({"seconds": settled() - began} | trainer.spent)
        print("iteration", round(settled() - began, 2), {n: round(v, 2) for n, v in trainer.spent.items()}, flush=True)
    return {name: round(statistics.median(line[name] for line in found), 3) for name in found[0]}


def recipe(sizes: list[str], tiny: bool) -> Found:
    """The recipe for one card, with its micro-batches and with larger ones."""
    for size in sizes:
        for micro in (4,) if tiny or size == "7B" else (4, 32):
            fresh()
            began = settled()
            trainer = trainer_of(size, tiny, micro_batch=micro)
            print(size, micro, f"made in {settled() - began:.1f} s", flush=True)
            times = iterations(trainer, 1)
            yield f"{size}, micro-batches of {micro}", times | {
                "peak_gib": round(peak(), 2), "completions": trainer.config.batch,
                "new_tokens": trainer.config.max_new_tokens, "trained_numbers": trainer.roles.trained(),
            }  # fmt: skip
            del trainer


def foreseen(sizes: list[str], tiny: bool) -> Found:
    """What `llm plan` and the estimate at a run's start say of the same runs; needs no GPU."""
    from bilevel_rl.llm import memory, plan
    from bilevel_rl.llm.config import Config

    recipe = Config.load(str(ROOT / "examples/configs/gpu_24gb.yaml"))
    for size in sizes:
        for micro in (4, 32):
            config = dataclasses.replace(recipe, micro_batch=micro)
            forecast = plan.foresee(config, shape_of(size), card=plan.CARDS["h200"])
            estimate = memory.foreseen(config, shape_of(size))
            yield f"{size}, micro-batches of {micro}", {
                "seconds": {k: round(v, 3) for k, v in forecast.seconds.items()}, "plan_gib": round(forecast.total / GIB, 2),
                "estimate_gib": round(estimate.total / GIB, 2), "writing_operations": forecast.writing,
                "learning_operations": forecast.learning, "streamed_bytes": forecast.streamed,
            }  # fmt: skip


def writing(sizes: list[str], tiny: bool) -> Found:
    """Tokens a second of three samplers."""
    import torch

    from bilevel_rl.llm.data.prompts import Prompt
    from bilevel_rl.llm.sampling import captured, decoding
    from bilevel_rl.llm.sampling.rollout import pad_prompts
    from bilevel_rl.llm.sampling.sampler import Sampler, uniforms

    rows, prompt, new = (4, 8, 8) if tiny else (128, 256, 256)
    for size in sizes:
        fresh()
        model = model_of(size)
        prompts = [Prompt(tuple(ids), None) for ids in prompts_of(size, rows, prompt)]
        ids, attention = pad_prompts(prompts, 2, device())
        u, sampler = uniforms(rows, new, 0), Sampler((), 2)

        def ours(sampler: Any = sampler, model: Any = model, prompts: Any = prompts, u: Any = u) -> None:
            sampler(model, prompts, u)

        def generate(model: Any = model, ids: Any = ids, attention: Any = attention) -> None:
            model.generate(ids, attention_mask=attention, max_new_tokens=new, min_new_tokens=new, do_sample=True, top_k=0,
                           top_p=1.0, pad_token_id=2)  # fmt: skip

        lines: dict[str, Any] = {}
        calls = {"captured": ours, "as written": ours, "generate": generate}
        for label, call in calls.items():
            if label == "as written":
                decoding.can_stay_in_place = lambda model: False  # type: ignore[assignment]
            fresh()
            times = []
            with torch.no_grad():
                for _ in range(3):
                    began = settled()
                    call()
                    times.append(settled() - began)
            decoding.can_stay_in_place = captured.can_stay_in_place  # type: ignore[assignment]
            lines[label] = {"seconds": round(min(times[1:]), 3), "tokens_per_second": round(rows * new / min(times[1:])),
                            "peak_gib": round(peak(), 2)}  # fmt: skip
        yield size, lines | {"over generate": round(lines["generate"]["seconds"] / lines["captured"]["seconds"], 2)}
        del model


def tokenizer_of(size: str) -> Any:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {"<unk>": 0, "<eos>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, min(4000, shape_of(size).vocab_size))}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )


def grpo_of_trl(size: str, tiny: bool, prompts: int, group: int, tokens: int, micro: int, steps: int) -> float:
    """Seconds of an optimiser's step of TRL's GRPO: completions written at once, gradients in parts."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    stamps: list[float] = []

    class Clock(TrainerCallback):
        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            stamps.append(settled())

    texts = [" ".join(f"w{i}" for i in row) for row in prompts_of(size, prompts, 8 if tiny else 256)]
    targets = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=micro, num_generations=group,
        gradient_accumulation_steps=prompts * group // micro,
        max_completion_length=tokens, beta=0.0, learning_rate=1e-5, report_to=[], max_steps=steps,
        save_strategy="no", logging_strategy="no", disable_tqdm=True, gradient_checkpointing=True,
        bf16=device().type == "cuda", use_cpu=device().type == "cpu", generation_kwargs={"min_new_tokens": tokens},
        shuffle_dataset=False, lr_scheduler_type="constant",
    )  # fmt: skip
    trainer = GRPOTrainer(
        model=model_of(size), reward_funcs=lambda completions, **_: alternating(completions), args=config,
        train_dataset=Dataset.from_dict({"prompt": texts * 20}), processing_class=tokenizer_of(size), callbacks=[Clock()],
        peft_config=LoraConfig(r=16, lora_alpha=32, target_modules=targets, task_type="CAUSAL_LM"),
    )  # fmt: skip
    with torch.enable_grad():
        trainer.train()
    return statistics.median(b - a for a, b in itertools.pairwise(stamps))


def trl(sizes: list[str], tiny: bool) -> Found:
    """An iteration of TRL's GRPO and of ours."""
    warnings.simplefilter("ignore")
    prompts, group, tokens = (4, 8, 8) if tiny else (16, 8, 256)
    for size in sizes:
        for micro in (4,) if tiny else (4, 32):
            fresh()
            seconds = grpo_of_trl(size, tiny, prompts, group, tokens, micro, 3)
            theirs = {"seconds": round(seconds, 3), "peak_gib": round(peak(), 2)}
            yield f"TRL GRPO, {size}, micro-batches of {micro}", theirs
            for label, changes in {
                "plain, recipe grpo": {"method": "plain", "recipe": "grpo", "tau": 0.0, "target_kl": 0.0},
                "tilted": {"estimator": "tilted"},
            }.items():
                fresh()
                trainer = trainer_of(size, tiny, micro_batch=micro, **changes)
                times = iterations(trainer, 1)
                memory = round(peak(), 2)
                yield f"{label}, {size}, micro-batches of {micro}", times | {
                    "peak_gib": memory, "seconds over TRL": round(times["seconds"] / theirs["seconds"], 2),
                    "memory over TRL": round(memory / max(theirs["peak_gib"], 1e-9), 2),
                }  # fmt: skip
                del trainer


# -- JAX ------------------------------------------------------------------------------------------------------------------


def places() -> dict[str, Any]:
    import jax

    found = {"cpu": jax.devices("cpu")[0]}
    try:
        found["gpu"] = jax.devices("gpu")[0]
    except RuntimeError:
        print("JAX knows no GPU here", flush=True)
    return found


def _clocked(go: Any, repeats: int) -> float:
    """Least seconds of a call, after one that compiles."""
    go()
    times = []
    for _ in range(repeats):
        began = time.perf_counter()
        go()
        times.append(time.perf_counter() - began)
    return min(times)


def tables(sizes: list[str], tiny: bool) -> Found:
    """The finite engine by chains and by states."""
    import jax
    import jax.numpy as jnp

    from bilevel_rl.finite.problems import RandomMDP
    from bilevel_rl.finite.solvers import CoupledPenalty, PenaltyActorCritic
    from bilevel_rl.loop import stepping, use_64_bit

    use_64_bit()
    def cost(problem: Any, solver: Any, runs: int, length: int, place: Any) -> float:
        with jax.default_device(place):
            problem = jax.tree.map(jnp.asarray, problem)
            stacked, keys = stepping.stack([solver.on(problem)], runs), stepping.run_keys(0, runs)
            states = stepping.first_states(problem, stacked, jnp.tile(problem.x0, (runs, 1)), keys)
            before = float(states.samples.sum())

            def go() -> Any:
                return jax.block_until_ready(
                    stepping.advance(problem, stacked, states, keys, jnp.array(0), length)[0]
                )

            made = float(go().samples.sum()) - before
            return round(1e9 * _clocked(go, 3) / made, 2)

    problem = RandomMDP(states=1000, actions=4, branching=4)
    for chains in (16, 64) if tiny else (64, 1024, 16384, 131072):
        length = 4 if tiny else min(200, max(20, 4 * 65536 // chains))
        yield f"penalty_actor_critic, {chains} chains, ns a transition", {
            name: cost(problem, PenaltyActorCritic(chains=chains), 1, length, place) for name, place in places().items()
        }
    for runs in (1, 2) if tiny else (1, 32, 1024):
        yield f"coupled_penalty, {runs} runs, ns a transition", {
            name: cost(problem, CoupledPenalty(), runs, 4 if tiny else 100, place) for name, place in places().items()
        }


def followers(sizes: list[str], tiny: bool) -> Found:
    """SAC followers with the covariance estimator, by seeds."""
    import jax
    import jax.numpy as jnp

    from bilevel_rl.control.problems import PendulumShaping
    from bilevel_rl.control.solvers import Covariance
    from bilevel_rl.loop import stepping, use_64_bit

    use_64_bit()
    updates = 4 if tiny else 100
    for seeds in (1, 2) if tiny else (1, 8, 64, 512):
        found: dict[str, float] = {}
        for name, place in places().items():
            if name == "cpu" and seeds > 64:
                continue  # minutes
            with jax.default_device(place):
                problem = jax.tree.map(jnp.asarray, PendulumShaping())
                stacked, keys = stepping.stack([Covariance().on(problem)], seeds), stepping.run_keys(0, seeds)
                run = stepping.stepper(problem, stacked, keys)
                at = [run.first(jnp.tile(problem.x0, (seeds, 1)))]

                def go(run: Any = run, at: list[Any] = at) -> None:  # replays are written over: it goes on
                    at[0] = jax.block_until_ready(run.advance(at[0], 0, updates)[0])

                go()
                found[name] = round(1e6 * _clocked(go, 2) / updates / seeds, 1)
        yield f"{seeds} seeds, microseconds a seed-update", found


# -- all of it ------------------------------------------------------------------------------------------------------------


def name_of_card() -> str:
    """As its maker names it."""
    import torch

    return torch.cuda.get_device_name() if torch.cuda.is_available() else "none"


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", help=f"of {', '.join(PARTS)}; default: all, each in its own process")
    parser.add_argument("--sizes", nargs="+", default=[])
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--file", type=Path, default=FILE)
    options = parser.parse_args()
    if len(options.parts) != 1:
        for part in options.parts or PARTS:
            began = time.perf_counter()
            command = [sys.executable, __file__, part, "--file", str(options.file), *(["--tiny"] if options.tiny else [])]
            if options.sizes:
                command += ["--sizes", *options.sizes]
            try:
                code = subprocess.run(command, check=False, timeout=PARTS[part]).returncode
            except subprocess.TimeoutExpired:
                code = -1
            print(f"{part}: exit {code} after {time.perf_counter() - began:.0f} s", flush=True)
        return
    (part,) = options.parts
    three = ["0.5B", "1.5B", "7B"]
    usual = {"recipe": three, "foreseen": three, "writing": three[:2], "trl": three[:1]}
    from bilevel_rl import records

    here = records.provenance(f"python benchmarks/gpu.py {part}")
    here["hardware"]["accelerator"] = name_of_card()
    for name, line in globals()[part](["tiny"] if options.tiny else options.sizes or usual.get(part, []), options.tiny):
        print(name, line, flush=True)
        if not options.tiny:
            held = json.loads(options.file.read_text()) if options.file.exists() else {}
            options.file.parent.mkdir(parents=True, exist_ok=True)
            held[part] = held.get(part, {}) | {name: line, "provenance": here}
            options.file.write_text(json.dumps(held, indent=1) + "\n")


if __name__ == "__main__":
    main()
