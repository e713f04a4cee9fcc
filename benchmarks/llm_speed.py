"""Speed and memory of the language-model trainer, against public yardsticks on the same model, batch and tokens.

    python benchmarks/llm_speed.py                 writes benchmarks/results/llm_speed.json (some minutes, one thread)

* sampling: tokens per CPU second of our sampler and of transformers' `generate` (2 layers of width 128, vocabulary 4,096);
* iteration: CPU seconds of a whole bi-level iteration, `shared` and `paired`, and of a step of TRL's RLOO trainer;
* memory: what five LoRA roles add to a base of GPT-2's size, with gradients and Adam's moments, measured.

CPU seconds, not wall clock: the machine is shared. Every figure is the median of repeated, interleaved runs.
"""

from __future__ import annotations

import argparse
import gc
import json
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from transformers import GPT2Config, GPT2ForSequenceClassification, GPT2LMHeadModel, PreTrainedTokenizerFast

from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.sampling.rollout import pad_prompts
from bilevel_rl.llm.sampling.sampler import Sampler, uniforms
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.records import hardware

ROOT = Path(__file__).parents[1]
PROMPTS, GROUP, TOKENS = 16, 4, 32


def gpt2(layers: int, width: int, vocabulary: int = 4096, positions: int = 128) -> GPT2LMHeadModel:
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=width, n_layer=layers, n_head=max(2, width // 64),
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=1, pad_token_id=2,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def cpu_seconds(call) -> float:
    begin = time.process_time()
    call()
    return time.process_time() - begin


def interleaved(calls: dict, repeats: int) -> dict[str, float]:
    """Median CPU seconds of each call; the calls take turns, after one warm-up each."""
    for call in calls.values():
        call()
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats):
        for name, call in calls.items():
            times[name].append(cpu_seconds(call))
    return {name: statistics.median(values) for name, values in times.items()}


def sampling(repeats: int) -> list[dict]:
    rows = []
    for layers, width, batch, tokens in ((2, 128, 64, 32), (2, 128, 256, 48), (4, 256, 64, 48)):
        model = gpt2(layers, width)
        prompts = [Prompt(tuple(range(5, 13 - i % 3)), None) for i in range(batch)]
        ids, attention = pad_prompts(prompts, 2)
        ours = Sampler((), 2)  # full length, as `generate` is asked for
        u = uniforms(batch, tokens, 0)
        seconds = interleaved(
            {
                "ours": lambda m=model, p=prompts, u=u, s=ours: s(m, p, u),
                "generate": lambda m=model, i=ids, a=attention, n=tokens: m.generate(
                    i, attention_mask=a, max_new_tokens=n, min_new_tokens=n, do_sample=True, top_k=0, top_p=1.0,
                    pad_token_id=2,
                ),
            },
            repeats,
        )  # fmt: skip
        rows.append({
            "layers": layers, "width": width, "batch": batch, "tokens": tokens,
            **{f"{name}_tokens_per_second": round(batch * tokens / s) for name, s in seconds.items()},
            "ratio": round(seconds["generate"] / seconds["ours"], 2),
        })  # fmt: skip
        print(rows[-1], flush=True)
    return rows


def tokenizer(vocabulary: int = 4096) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"<unk>": 0, "<eos>": 1, "<pad>": 2} | {f"w{i}": i for i in range(3, vocabulary)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=inner, eos_token="<eos>", pad_token="<pad>", unk_token="<unk>", padding_side="left"
    )


def texts() -> list[str]:
    return [" ".join(f"w{3 + (7 * i + j) % 4000}" for j in range(8)) for i in range(PROMPTS)]


def trl_step():
    """A callable that runs one more step of TRL's RLOO: 16 prompts x 4 completions x 32 tokens, KL to a reference."""
    warnings.simplefilter("ignore")
    from datasets import Dataset
    from trl import RLOOConfig, RLOOTrainer

    torch.manual_seed(0)
    folder, words = tempfile.mkdtemp(), tokenizer()
    gpt2(2, 128).save_pretrained(folder)  # RLOO loads its reference from the policy's folder
    words.save_pretrained(folder)
    model = GPT2LMHeadModel.from_pretrained(folder)
    scorer = GPT2ForSequenceClassification(
        GPT2Config(**{**model.config.to_dict(), "num_labels": 1, "architectures": None})
    ).eval()  # fmt: skip
    config = RLOOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=PROMPTS * GROUP, num_generations=GROUP,
        max_completion_length=TOKENS, beta=0.05, learning_rate=1e-4, report_to=[], use_cpu=True, max_steps=10**6,
        save_strategy="no", disable_tqdm=True, logging_steps=10**6, gradient_checkpointing=False, bf16=False,
        generation_kwargs={"min_new_tokens": TOKENS},
    )  # fmt: skip
    trainer = RLOOTrainer(
        model=model, reward_funcs=scorer, args=config, processing_class=words,
        reward_processing_classes=words, train_dataset=Dataset.from_dict({"prompt": texts() * 200}),
    )  # fmt: skip
    loader = iter(trainer.get_train_dataloader())
    trainer.create_optimizer_and_scheduler(10**6)
    trainer.current_gradient_accumulation_steps = 1

    def step():
        batch = next(loader)
        trainer.training_step(trainer.model, batch, PROMPTS * GROUP)
        torch.nn.utils.clip_grad_norm_(trainer.model.parameters(), 1.0)
        trainer.optimizer.step()
        trainer.model.zero_grad()
        trainer.state.global_step += 1

    return step


def our_step(**options):
    """A callable that runs one more iteration of ours on the same model, batch and tokens; x is a full classifier."""
    config = Config(
        steps=10**6, prompts_per_step=PROMPTS, group=GROUP, max_new_tokens=TOKENS, tau=0.05, alpha=1e-4, zeta=1e-4,
        pairs_per_step=8, **options,
    )  # fmt: skip

    def judge(prompts, completions, shuffle_order=False):
        return [0] * len(prompts)

    # no stop id: every completion has full length, as TRL's
    trainer = BilevelTrainer(config, gpt2(2, 128), prompts=[list(range(5 + i, 13 + i)) for i in range(16)], judge=judge)

    def step():
        trainer.iterate(trainer.step)
        trainer.step += 1

    return step


def iteration(repeats: int) -> dict:
    seconds = interleaved(
        {
            "trl_rloo": trl_step(), "shared": our_step(estimator="shared"), "paired": our_step(estimator="paired"),
            "tilted": our_step(estimator="tilted"), "partial_sgd": our_step(method="partial_sgd"),
        },
        repeats,
    )  # fmt: skip
    result = {f"{name}_cpu_seconds": round(s, 4) for name, s in seconds.items()}
    for name in ("shared", "paired", "tilted", "partial_sgd"):
        result[f"{name}_over_trl"] = round(seconds[name] / seconds["trl_rloo"], 2)
    print(result, flush=True)
    return result


def tensor_bytes() -> int:
    gc.collect()
    seen = {}
    for thing in gc.get_objects():
        try:
            if isinstance(thing, torch.Tensor):
                storage = thing.untyped_storage()
                seen[storage.data_ptr()] = storage.nbytes()
        except Exception:  # half-made objects of other libraries
            continue
    return sum(seen.values())


def memory() -> dict:
    """Live bytes after an iteration with Adam, less the base's, for adapters and for copies."""
    found = {}
    for name, layers, width, vocabulary, backends in (
        ("gpt2_124m", 12, 768, 50257, ("lora",)), ("4l_256", 4, 256, 4096, ("lora", "full")),
    ):  # fmt: skip
        base_bytes = sum(p.numel() * 4 for p in gpt2(layers, width, vocabulary).parameters())
        for backend in backends:
            config = Config(
                steps=1, backend=backend, prompts_per_step=1, group=2, max_new_tokens=4, recipe="actor_critic",
                lora_rank=8, pairs_per_step=1,
            )  # fmt: skip
            before = tensor_bytes()
            trainer = BilevelTrainer(
                config, gpt2(layers, width, vocabulary), prompts=[[5, 6, 7]], judge=lambda p, c, shuffle_order=False: [0]
            )
            trainer.train()
            for role in trainer.roles.names:  # gradients are freed after x's step: hold all at once, as at the peak
                for p in trainer.roles.parameters(role).values():
                    p.grad = torch.zeros_like(p) if p.grad is None else p.grad
            trainer.last = None
            added = tensor_bytes() - before - base_bytes
            copies = 5 * 4 * base_bytes + base_bytes
            found[f"{name}_{backend}"] = {
                "base_gb": round(base_bytes / 1e9, 3), "added_gb": round(added / 1e9, 3),
                "trained_numbers": trainer.roles.trained(), "five_copies_and_reference_gb": round(copies / 1e9, 2),
                "estimate_at_start": str(trainer.memory),
            }  # fmt: skip
            print(name, backend, found[f"{name}_{backend}"], flush=True)
            del trainer
    return found


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--only", default="")
    args = parser.parse_args()
    torch.set_num_threads(1)
    path = ROOT / "benchmarks" / "results" / "llm_speed.json"
    result = json.loads(path.read_text()) if path.exists() else {}
    for name, call in (
        ("sampling", lambda: sampling(args.repeats)), ("iteration", lambda: iteration(args.repeats)), ("memory", memory),
    ):  # fmt: skip
        if not args.only or name == args.only:
            result[name] = call()
    result["hardware"] = hardware() | {"threads": 1}
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
