"""Every component of a recipe in the trainer, at equal tokens and on ten seeds, with TRL's GRPO beside them.

    python benchmarks/recipes.py [--quick] [--families sort,grid,tweets,trl] [--seeds 10] [--tokens N] [--out FILE]
        [--cells FOLDER] [--assess]

A run takes seconds: one Torch thread, language models of 2 layers and width 48, made on the spot and cached. Families:

* `sort`: sort four letters (`sort:dbca=` -> `abcd`), exact reward, problems held out by a hash; a GPT-2 of characters is
  warmed up on answers until it is right about a quarter of the time. Score: share of right held-out answers.
* `grid`: four text-grid games with a key and a door, the moves of an episode as one completion, cut where it ends; states
  come back by replaying the moves. Score: share of 256 fresh episodes that reach the door.
* `tweets`: the happy-tweets model and classifier, the gold score as reward, tau = .05. Score: gold on held-out prompts.
* `trl`: GRPO of TRL 1.16 on `sort`, and whole recipes beside it: the same start, prompts, tokens and seeds, and the same
  settings to choose from for each (1 or 2 gradient steps a batch, times the learning rates).

Within a family all runs stop at the same number of generated tokens (greedy baselines count). A variant that takes two
gradient steps a batch is also shown at equal gradient steps, with half the tokens. Every variant chooses its learning rate
from the same four on three seeds that do not count; where the best is the smallest or largest of them, another is tried
beyond it, and if the best stays at the edge the choice is refused and nothing is claimed of the variant. Intervals are
Student's t over seeds; their coverage, and that of the percentile and studentised bootstraps, is simulated at the number of
seeds on the scores' own kind of law and written down. Claims are of paired t-tests after Holm's correction over the
variants of a family. `--assess` computes intervals and claims again from the scores on record, without a run. Every
finished run is a file in the folder of cells: kill it at any moment and start it again, nothing finished is lost. Writes
benchmarks/results/recipes.json.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import functools
import hashlib
import json
import logging
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast, TrainerCallback
from transformers.utils import logging as transformers_logging

from bilevel_rl import __version__, records
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.prompts import as_prompts
from bilevel_rl.llm.sampling.rollout import Rollout, texts
from bilevel_rl.llm.sampling.sampler import Sampler, uniforms
from bilevel_rl.llm.tasks import arithmetic
from bilevel_rl.llm.tasks.text_grid import MOVES, Grid, generate, replay
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.statistics import bootstrap, coverage, holm, mean_interval, paired_test, studentised

ROOT = Path(__file__).parents[1]
RATES = (1e-4, 3e-4, 1e-3, 3e-3)
TUNING = (1000, 1001, 1002)  # seeds on which a learning rate is chosen
BEYOND = 2  # rates tried beyond an edge before a choice is refused
LEVEL = 0.05  # of a family's claims together
BASE = "credit=group_norm, loss=policy_gradient"  # what a component is put into

# label -> (slot, recipe, further options of the run)
Variant = tuple[str, str, dict[str, Any]]
TWICE = {"epochs": 2}  # losses that allow for older samples take two gradient steps on a batch
SORT: dict[str, Variant] = {
    "return": ("credit", "credit=return", {}),
    "leave_one_out": ("credit", "credit=leave_one_out", {}),
    "group_norm": ("credit", "credit=group_norm", {}),
    "group_mean": ("credit", "credit=group_mean", {}),
    "batch_norm": ("credit", "credit=batch_norm", {}),
    "reward_to_go": ("credit", "credit=reward_to_go", {}),
    "remax": ("credit", "credit=remax", {}),
    "gae": ("credit", "credit=gae(lam=1.0)", {}),
    "truncated_gae": ("credit", "credit=truncated_gae", {}),
    "optimal_baseline": ("credit", "credit=optimal_baseline", {}),
    "length_baseline": ("credit", "credit=length_baseline", {}),
    "empg": ("credit", "credit=empg(group_norm)", {}),
    "copo": ("credit", "credit=copo(group_norm)", {}),
    "adora": ("credit", "credit=adora(group_norm)", {}),
    "polychromic": ("credit", "credit=polychromic(size=2)", {}),
    "hpt_gate": ("credit", "credit=hpt_gate, loss=hybrid", {"demonstrations": True}),
    "three_terms": ("credit", "credit=group_norm", {"terms": True}),
    "dvao": ("credit", "credit=dvao", {"terms": True}),
    "gdpo": ("credit", "credit=gdpo", {"terms": True}),
    "gpg": ("credit", "credit=gpg", {}),
    "to_go_leave_one_out": ("credit", "credit=to_go_leave_one_out", {}),
    "soft_overlong": ("reward", "reward=soft_overlong, credit=group_norm", {}),
    "g2rl": ("reward", "reward=g2rl, credit=group_norm", {}),
    "win_rate": ("reward", "reward=win_rate, credit=group_norm", {}),
    "ranking_reward": ("reward", "reward=ranking_reward, credit=group_norm", {}),
    "dynamic_sampling": ("select", "select=dynamic_sampling, credit=group_norm", {}),
    "d3s": ("select", "select=d3s, credit=group_norm", {}),
    "pcl": ("select", "select=pcl(share=0.5), credit=group_norm", {}),
    "v0_budget": ("select", "select=v0_budget, credit=group_norm", {}),
    "r3": ("select", "select=replay, credit=replay_credit(group_norm), loss=clipped", {}),
    "choose_nearest": ("rollout", "rollout=choose_nearest, credit=group_norm", {}),
    "spread_budget": ("rollout", "rollout=spread_budget, credit=group_norm", {}),
    "refill": ("rollout", "rollout=refill, credit=group_norm", {}),
    "duration": ("weigh", "credit=group_norm, weigh=duration", {"durations": True}),
    "clip_cov": ("weigh", "credit=group_norm, weigh=clip_cov", {}),
    "d3s_tokens": ("weigh", "credit=group_norm, weigh=d3s_tokens", {}),
    "probability_mask": ("weigh", "credit=group_norm, weigh=probability_mask", {}),
    "high_entropy": ("weigh", "credit=group_norm, weigh=high_entropy", {}),
    "off_policy_mask": ("weigh", "credit=group_norm, weigh=off_policy_mask, loss=clipped", TWICE),
    "policy_gradient_once": ("loss", BASE, {}),
    "clipped": ("loss", "credit=group_norm, loss=clipped", TWICE),
    "clipped_per_sequence": ("loss", "credit=group_norm, loss=clipped(aggregate=per_sequence)", TWICE),
    "clip_higher": ("loss", "credit=group_norm, loss=clipped(high=0.28)", TWICE),
    "gspo": ("loss", "credit=group_norm, loss=gspo", TWICE),
    "cispo": ("loss", "credit=group_norm, loss=cispo", TWICE),
    "sapo": ("loss", "credit=group_norm, loss=sapo", TWICE),
    "vespo": ("loss", "credit=group_norm, loss=vespo", TWICE),
    "unified": ("loss", "credit=group_norm, loss=unified", TWICE),
    "copg": ("loss", "credit=group_norm, loss=copg", TWICE),
    "p3o": ("loss", "credit=group_norm, loss=p3o", TWICE),
    "direct_advantage": ("loss", "credit=group_mean, loss=direct_advantage", TWICE),
    "inpo": ("loss", "credit=group_norm, loss=inpo", TWICE),
    "mdpo": ("loss", "credit=group_norm, loss=mdpo", TWICE),
    "nash_mirror_prox": ("loss", "reward=win_rate, credit=group_norm, loss=nash_mirror_prox", TWICE),
    "exact_kl": ("regular", f"{BASE}, regular=0.01*exact_kl", {}),
    "sampled_kl": ("regular", f"{BASE}, regular=0.01*sampled_kl", {}),
    "entropy": ("regular", f"{BASE}, regular=0.01*entropy", {}),
    "epo": ("regular", f"{BASE}, regular=0.001*epo", {}),
    "kl_cov": ("regular", "credit=group_norm, loss=unified, regular=1.0*kl_cov", TWICE),
    "safe": ("regular", f"{BASE}, regular=1.0*safe", {}),
    "sgd": ("step", f"{BASE}, step=sgd", {"rates": (0.03, 0.1, 0.3, 1.0)}),
    "n_pg_igt": ("step", f"{BASE}, step=n_pg_igt", {"rates": (0.01, 0.03, 0.1, 0.3)}),
    "snr": ("step", f"{BASE}, step=snr", {"rates": (0.03, 0.1, 0.3, 1.0)}),
}  # fmt: skip
GRID: dict[str, Variant] = {
    "return": ("credit", "credit=return", {}),
    "leave_one_out": ("credit", "credit=leave_one_out", {}),
    "group_norm": ("credit", "credit=group_norm", {}),
    "batch_norm": ("credit", "credit=batch_norm", {}),
    "gae": ("credit", "credit=gae(lam=0.95)", {}),
    "step_level": ("credit", "credit=step_level(lam=0.95)", {}),
    "gigpo": ("credit", "credit=episode + 1.0*step_groups", {}),
    "hgpo": ("credit", "credit=hgpo", {}),
    "salt": ("credit", "credit=salt(group_norm)", {}),
    "empg": ("credit", "credit=empg(group_norm)", {}),
    "epo": ("regular", f"{BASE}, regular=0.001*epo", {}),
}  # fmt: skip
# whole recipes, tuned as TRL's GRPO is: with as many gradient steps a batch
WHOLE: dict[str, str] = {
    name: name for name in (
        "grpo", "dr_grpo", "dapo", "gspo", "cispo", "empg", "adora", "reinforce_pp", "mdpo", "p3o", "copg", "clip_cov",
        "kl_cov", "g2rl", "d3s",
    )
} | {
    "optimal_baseline_clipped": "credit=optimal_baseline, loss=clipped",
    "leave_one_out_clipped": "credit=leave_one_out, loss=clipped",
    "group_norm_clipped": "credit=group_norm, loss=clipped",
    "group_norm_clip_higher": "credit=group_norm, loss=clipped(high=0.28)",
    "nash_mirror_prox": "reward=win_rate, credit=group_norm, loss=nash_mirror_prox",
}  # fmt: skip
TWEETS: dict[str, Variant] = {
    name: ("recipe", name, {}) for name in ("reinforce", "rloo", "grpo", "dr_grpo", "d3s", "opo")
}
# components whose computation has changed since the run of five seeds on record
MENDED = (
    "gigpo", "hgpo", "epo", "safe", "length_baseline", "opo", "hpt_gate", "clip_cov", "mdpo", "soft_overlong", "dapo",
)  # fmt: skip
# what no family here can feed, and why
NOT_RUN = {
    "hierarchical": "needs a critic of the high level", "spae": "needs probes of the answer at every step",
    "advantage_alignment": "needs a second agent (tests/policy_gradient/test_alignment_game.py)",
    "segment_chain": "needs rollouts from prefixes", "segment_tree": "needs a tree of rollouts",
    "adhint_credit": "needs hints", "adhint_weight": "needs hints", "capo": "needs a curvature model",
    "window": "needs completions cut over several iterations", "subpo": "another objective: coverage",
    "supervised": "reads no reward", "precision": "reads no reward", "harpg": "needs Hessian-vector products",
    "kl_reward": "the trainer's own tau", "adam": "the trainer's own optimizer",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Family:
    """One kind of task.

    Attributes:
        tokens: generated by every run.
        prompts, group, horizon: of an iteration.
        variants: what is compared.
        start: seed -> folder of the model that training begins with.
        task: variant's options -> prompts, reward and further arguments of the trainer.
        score: trainer -> what counts.
        tau: weight of the KL, in units of reward.
        rates: learning rates to choose from.
    """

    tokens: int
    prompts: int
    group: int
    horizon: int
    variants: Mapping[str, Variant]
    start: Callable[[int], Path]
    task: Callable[[dict[str, Any]], dict[str, Any]]
    score: Callable[[BilevelTrainer], float]
    tau: float = 1e-3
    rates: tuple[float, ...] = RATES


# -- models and tokenizers --------------------------------------------------------------------------------------


def tokenizer(symbols: Sequence[str], pattern: str = "") -> PreTrainedTokenizerFast:
    """One token a symbol: characters, or what the pattern matches."""
    words = {"<pad>": 0, "<end>": 1, "<unk>": 2} | {s: i + 3 for i, s in enumerate(symbols)}
    inner = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.Split(Regex(pattern) if pattern else "", "isolated")
    inner.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<end>", pad_token="<pad>", unk_token="<unk>")


def gpt2(vocabulary: int, seed: int, positions: int = 40) -> GPT2LMHeadModel:
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=positions, n_embd=48, n_layer=2, n_head=2, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=1, eos_token_id=1, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def imitate(
    model: GPT2LMHeadModel, rows: Callable[[int], tuple[torch.Tensor, int]], steps: int, enough: Callable[[], bool]
) -> None:
    """Supervised learning on `rows(step)`: ids [N, L] (padding 0 at the end) and the length of the prompts."""
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    for step in range(1, steps + 1):
        ids, width = rows(step)
        logits = model(ids[:, :-1]).logits[:, width - 1 :]
        target = ids[:, width:]
        loss = torch.nn.functional.cross_entropy(logits.flatten(0, 1), target.flatten(), ignore_index=0)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 25 == 0 and enough():
            return


def cached(cells: Path, name: str, make: Callable[[], tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]]) -> Path:
    """The folder of a model, made when it is not there; a torn folder is made again."""
    folder = cells / "models" / name
    if not (folder / "complete").exists():
        model, words = make()
        model.save_pretrained(folder)
        words.save_pretrained(folder)
        (folder / "complete").touch()
    return folder


def sampled(model: Any, words: Any, prompts: Sequence[Any], horizon: int, seed: int) -> Rollout:
    """One completion of each prompt."""
    sampler = Sampler((1,), 0, tokenizer=words)
    rows = as_prompts(prompts, words)
    return sampler(model, rows, uniforms(len(rows), horizon, seed, 77))


# -- sorting letters --------------------------------------------------------------------------------------------

CHARACTERS = tokenizer(list(":=" + "sort" + "abcdefgh".translate(str.maketrans("", "", "sort"))))


@functools.cache
def problems(held_out: bool) -> list[arithmetic.Problem]:
    return arithmetic.generate(256 if held_out else 1500, 0, kinds=("sort",), levels=(3,), held_out=held_out)


def right(model: Any, seed: int = 0) -> float:
    """Share of right answers on the held-out problems."""
    found = problems(True)
    rollout = sampled(model, CHARACTERS, [p.prompt for p in found], 6, seed)
    return float(np.mean([arithmetic.verify(p.prompt, c) for p, c in zip(found, rollout.texts, strict=True)]))


def sort_start(cells: Path, seed: int) -> Path:
    def make() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
        model, rng = gpt2(len(CHARACTERS), seed), np.random.default_rng(seed)
        ids = torch.tensor([[*CHARACTERS(p.prompt + p.answer)["input_ids"], 1] for p in problems(False)])
        width = len(CHARACTERS(problems(False)[0].prompt)["input_ids"])
        imitate(model, lambda _: (ids[rng.integers(len(ids), size=64)], width), 4000, lambda: right(model) >= 0.25)
        return model, CHARACTERS

    return cached(cells, f"sort-{seed}", make)


def verified(prompts, completions, **_):
    return arithmetic.reward(prompts, completions)


def agreeing(prompts, completions, **_):
    return [arithmetic.partial(p, c) for p, c in zip(prompts, completions, strict=True)]


def well_formed(prompts, completions, **_):
    return [arithmetic.form(p, c) for p, c in zip(prompts, completions, strict=True)]


def sort_task(options: dict[str, Any]) -> dict[str, Any]:
    rows = [
        {"prompt": p.prompt, **({"demonstration": p.answer} if options.get("demonstrations") else {})}
        for p in problems(False)
    ]
    reward = [verified, agreeing, well_formed] if options.get("terms") else verified
    # a time for each response that depends on its length: long ones would weigh more in a day's batch
    fields = {"duration": lambda y: 0.5 + 0.1 * y.lengths.double()} if options.get("durations") else {}
    return {"prompts": rows, "reward": reward, "fields": fields}


def sort_score(trainer: BilevelTrainer) -> float:
    with trainer.roles.model("policy") as model:
        return right(model, seed=1)


# -- the text grid ----------------------------------------------------------------------------------------------

GAMES = [f"g{i}" for i in range(4)]
PATHS = tokenizer([*GAMES, *MOVES], r"g\d|[udlr]")


@functools.cache
def games() -> dict[str, Grid]:
    return dict(zip(GAMES, generate(len(GAMES), seed=3, level=1), strict=True))


def horizon() -> int:
    return max(grid.limit for grid in games().values())


def played(prompt: str, ids: Sequence[int]) -> Any:
    """The episode of a completion; tokens that are no move cost their turn."""
    return replay(games()[prompt], PATHS.convert_ids_to_tokens(list(ids)))


def reached(prompts, completion_ids, **_):
    return [played(p, ids).score for p, ids in zip(prompts, completion_ids, strict=True)]


class Played:
    """Samples moves and cuts an episode where it ends, as the game would."""

    def __init__(self) -> None:
        self.sampler = Sampler((), 0, tokenizer=PATHS)

    def __call__(self, model: Any, prompts: Sequence[Any], u: torch.Tensor) -> Rollout:
        y = self.sampler(model, prompts, u)
        ends = [played(p.text, ids) for p, ids in zip(y.prompts, y.completion_ids(), strict=True)]
        lengths = torch.tensor([len(e.actions) for e in ends])
        keep = torch.arange(y.horizon) < lengths[:, None]
        ids = torch.cat([y.ids[:, : y.width], torch.where(keep, y.completions, 0)], 1)
        attention = torch.cat([y.attention[:, : y.width], keep.to(y.attention.dtype)], 1)
        cut = dataclasses.replace(
            y, ids=ids, attention=attention, lengths=lengths, ended=torch.tensor([e.done for e in ends]), logp=y.logp * keep
        )
        return dataclasses.replace(cut, texts=texts(cut, PATHS))


def along(of: Callable[[Any, int], int]) -> Callable[[Rollout], torch.Tensor]:
    """[N, T] integers of the turns of each episode, from a function of (episode, turn)."""

    def field(y: Rollout) -> torch.Tensor:
        out = torch.zeros(y.size, y.horizon, dtype=torch.long)
        for i, (prompt, ids) in enumerate(zip(y.prompts, y.completion_ids(), strict=True)):
            episode = played(prompt.text, ids)
            for t in range(len(episode.actions)):
                out[i, t] = of(episode, t)
        return out

    return field


ORDER = {move: k for k, move in enumerate(MOVES)}
TURNS = {
    "turn": along(lambda e, t: t),
    "state_key": along(lambda e, t: e.grid.state_key(e.states[t])),
    "action_key": along(lambda e, t: ORDER.get(e.actions[t], len(ORDER))),
}


def grid_start(cells: Path, seed: int) -> Path:
    def make() -> tuple[GPT2LMHeadModel, PreTrainedTokenizerFast]:
        model, rng = gpt2(len(PATHS), seed), random.Random(seed)

        def rows(_: int) -> tuple[torch.Tensor, int]:  # uniform moves in every game
            lines = ["".join([rng.choice(GAMES), *rng.choices(list(MOVES), k=horizon())]) for _ in range(64)]
            return torch.tensor(PATHS(lines)["input_ids"]), 1

        imitate(model, rows, 100, lambda: False)
        return model, PATHS

    return cached(cells, f"grid-{seed}", make)


def grid_task(_: dict[str, Any]) -> dict[str, Any]:
    return {"prompts": list(games()), "reward": reached, "fields": TURNS, "generator": Played()}


def grid_score(trainer: BilevelTrainer) -> float:
    rows = as_prompts(list(games()), PATHS) * 64
    with trainer.roles.model("policy") as model:
        y = Played()(model, rows, uniforms(len(rows), horizon(), 1, 77))
    return float(y.ended.double().mean())


# -- happy tweets -----------------------------------------------------------------------------------------------


@functools.cache
def tweets(cells: Path) -> Any:
    from bilevel_rl.llm.tasks import happy_tweets

    return happy_tweets.from_grammar(cells / "models")


def tweets_family(cells: Path) -> Family:
    def task(_: dict[str, Any]) -> dict[str, Any]:
        made = tweets(cells)
        return {"prompts": made.prompts, "reward": made.gold()}

    def score(trainer: BilevelTrainer) -> float:
        from bilevel_rl.llm.evaluation import evaluate

        made = tweets(cells)
        figures, _ = evaluate(
            trainer.roles, made.held_out, trainer.generator, trainer.tokenizer, made.gold(), "policy", 28, seed=0
        )
        return figures["gold"]

    rates = (1.25e-4, 2.5e-4, 5e-4, 1e-3)
    return Family(16_000, 8, 4, 28, TWEETS, lambda seed: tweets(cells).model, task, score, 0.05, rates)


def families(cells: Path) -> dict[str, Family]:
    """The families by name; `trl` shares `sort`'s."""
    return {
        "sort": Family(12_000, 8, 8, 6, SORT, functools.partial(sort_start, cells), sort_task, sort_score),
        "grid": Family(50_000, 4, 16, horizon(), GRID, functools.partial(grid_start, cells), grid_task, grid_score),
        "tweets": tweets_family(cells),
    }


# -- one run ----------------------------------------------------------------------------------------------------


class Stop(TrainerCallback):
    """Ends a run when its tokens are spent."""

    def __init__(self, tokens: int) -> None:
        self.tokens, self.spent = tokens, lambda: 0

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> Any:
        control.should_training_stop = self.spent() >= self.tokens
        return control


def run(family: Family, variant: Variant, rate: float, seed: int, tokens: int) -> dict[str, Any]:
    """One run of the trainer; score, tokens and seconds."""
    _, recipe, options = variant
    begin = time.process_time()
    estimate = family.prompts * family.group * family.horizon
    stop = Stop(tokens)
    config = Config(
        method="plain", recipe=recipe, seed=seed, steps=4 * tokens // estimate + 10, prompts_per_step=family.prompts,
        group=family.group, max_new_tokens=family.horizon, alpha=rate, beta=rate, tau=family.tau, kl_estimator="k1",
        epochs=options.get("epochs", 1), samples_every=0, save_every=0, device="cpu",
    )  # fmt: skip
    trainer = BilevelTrainer(config, family.start(seed), callbacks=[stop], **family.task(options))
    stop.spent = lambda: trainer.tokens
    trainer.train()
    return {
        "score": family.score(trainer), "tokens": trainer.tokens, "iterations": trainer.step,
        "gradient_steps": trainer.step * config.epochs,
        "kl": round(trainer.history[-1]["kl"], 3), "seconds": round(time.process_time() - begin, 2),
    }  # fmt: skip


def run_trl(family: Family, steps: int, rate: float, seed: int, tokens: int) -> dict[str, Any]:
    """TRL's GRPO on the same task."""
    import tempfile

    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    begin, spent = time.process_time(), [0]

    def counted(prompts, completions, completion_ids, **_):
        spent[0] += sum(len(ids) for ids in completion_ids)
        return verified(prompts, completions)

    stop = Stop(tokens)
    stop.spent = lambda: spent[0]
    model = GPT2LMHeadModel.from_pretrained(family.start(seed))
    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(), per_device_train_batch_size=family.prompts * family.group,
        num_generations=family.group, num_iterations=steps, max_completion_length=family.horizon, learning_rate=rate,
        lr_scheduler_type="constant", beta=0.0, seed=seed, max_steps=100_000, report_to=[], use_cpu=True,
        save_strategy="no", disable_tqdm=True, logging_strategy="no", gradient_checkpointing=False, bf16=False,
        max_grad_norm=1.0, temperature=1.0,
    )  # fmt: skip
    rows = Dataset.from_dict({"prompt": [p.prompt for p in problems(False)]})
    trainer = GRPOTrainer(
        model=model, reward_funcs=counted, args=config, processing_class=CHARACTERS, train_dataset=rows, callbacks=[stop]
    )
    trainer.train()
    score = right(trainer.model.eval(), seed=1)
    return {
        "score": score, "tokens": spent[0], "iterations": trainer.state.global_step // steps,
        "gradient_steps": trainer.state.global_step,
        "seconds": round(time.process_time() - begin, 2),
    }  # fmt: skip


# -- the table --------------------------------------------------------------------------------------------------


class Cells:
    """Finished runs, a file each, by what they are."""

    def __init__(self, folder: Path) -> None:
        self.folder = records.make_folder(folder / "runs")

    def get(self, key: Sequence[Any], make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        """The run of that key, read back or made now."""
        name = hashlib.sha256(json.dumps(list(key)).encode()).hexdigest()[:16]
        path = self.folder / f"{key[0]}-{key[1]}-{name}.json"
        if not path.exists():
            records.write_json(path, {"key": list(key), **make()})
        return records.read_json(path)


def chosen(choices: Sequence[Any], score: Callable[[Any], float]) -> tuple[Any, dict[str, float], bool]:
    """The best setting, what was tried, and whether the choice is refused because the best rate stayed at an edge.

    Args:
        choices: settings whose last (or only) entry is a learning rate, the rates in increasing order.
        score: of a setting, on the tuning seeds.
    """
    tried = {json.dumps(c): score(c) for c in choices}
    for _ in range(BEYOND + 1):
        settings = [json.loads(c) for c in tried]
        best = max(settings, key=lambda c: tried[json.dumps(c)])
        same = sorted(rate_of(c) for c in settings if rest_of(c) == rest_of(best))
        beyond = {same[0]: same[0] / 3, same[-1]: same[-1] * 3}
        if len(same) == 1 or rate_of(best) not in beyond:
            return best, tried, False
        if len(tried) >= len(choices) + BEYOND:
            return best, tried, True
        more = with_rate(best, beyond[rate_of(best)])
        tried[json.dumps(more)] = score(more)
    raise AssertionError("a choice is made or refused")


def rate_of(setting: Any) -> float:
    """The learning rate of a setting."""
    return setting[-1] if isinstance(setting, list) else setting


def rest_of(setting: Any) -> Any:
    """A setting without its learning rate."""
    return setting[:-1] if isinstance(setting, list) else None


def with_rate(setting: Any, rate: float) -> Any:
    """A setting with another learning rate."""
    return [*setting[:-1], rate] if isinstance(setting, list) else rate


def measure(cells: Cells, name: str, label: str, choices: Sequence[Any], make: Any, seeds: int, tokens: int) -> dict:
    """A variant: its setting chosen on the tuning seeds, then every seed.

    Args:
        choices: settings to choose from.
        make: (setting, seed, tokens) -> a run.
    """

    def one(setting: Any, seed: int, spend: int = tokens) -> dict[str, Any]:
        return cells.get((name, label, setting, seed, spend), lambda: make(setting, seed, spend))

    best, tried, refused = choices[0], {}, False
    if len(choices) > 1:
        best, tried, refused = chosen(choices, lambda c: float(np.mean([one(c, s)["score"] for s in TUNING])))
    runs = [one(best, seed) for seed in range(seeds)]
    row = {
        "chosen": best, "tuning": tried, "refused": refused, "scores": [r["score"] for r in runs],
        "tokens": int(np.mean([r["tokens"] for r in runs])), "seconds": float(np.mean([r["seconds"] for r in runs])),
        "gradient_steps": int(np.mean([r["gradient_steps"] for r in runs])),
        "steps_a_batch": round(runs[0]["gradient_steps"] / max(runs[0]["iterations"], 1)),
    }  # fmt: skip
    if row["steps_a_batch"] > 1:
        fewer = [one(best, seed, tokens // row["steps_a_batch"]) for seed in range(seeds)]
        row["scores_at_equal_steps"] = [r["score"] for r in fewer]
    return row | interval(row["scores"])


def interval(scores: Sequence[float]) -> dict[str, float]:
    """Mean over seeds with Student's interval."""
    found = mean_interval(scores)
    return {"mean": found.value, "low": found.low, "high": found.high}


def paired(ours: Sequence[float], theirs: Sequence[float]) -> dict[str, float]:
    """Difference of two variants, seed by seed, with its interval and the p-value of the paired t-test."""
    number = min(len(ours), len(theirs))
    return interval(np.array(ours[:number]) - np.array(theirs[:number])) | {"p": paired_test(ours[:number], theirs[:number])}


def corrected(rows: Mapping[str, dict[str, Any]], key: str) -> list[str]:
    """Write Holm's p into the comparison `key` of all rows; the labels of those that may be claimed to be better."""
    asked = [label for label, row in rows.items() if key in row]
    for label, p in zip(asked, holm([rows[label][key]["p"] for label in asked]), strict=True):
        rows[label][key]["holm"] = float(p)
    return [
        label for label in asked
        if rows[label][key]["holm"] < LEVEL and rows[label][key]["mean"] > 0 and not rows[label].get("refused")
    ]  # fmt: skip


def compared(rows: Mapping[str, dict[str, Any]], base: dict[str, Any], key: str, skip: str = "") -> list[str]:
    """Each row against one of them at the same seeds, at equal tokens and at equal gradient steps; who is better at both."""
    equal = base.get("scores_at_equal_steps", base["scores"])
    for label, row in rows.items():
        row |= interval(row["scores"])
        row.pop(key, None)
        if label != skip:
            row[key] = paired(row["scores"], base["scores"])
            more = row.get("steps_a_batch", 1) > base.get("steps_a_batch", 1)
            known = not more or "scores_at_equal_steps" in row
            if known:
                row[f"{key}_at_equal_steps"] = paired(row["scores_at_equal_steps"] if more else row["scores"],
                                                      base["scores"] if more else equal)  # fmt: skip
    both = set(corrected(rows, f"{key}_at_equal_steps"))
    return [label for label in corrected(rows, key) if label in both]


def assess(results: dict[str, Any], repeats: int = 400) -> None:
    """What each component does against the family's plain baseline, and against TRL, at the same seeds.

    Args:
        repeats: simulated samples that the coverage of an interval is a share of.
    """
    for name, found in results["families"].items():
        reference = {"sort": "group_norm", "grid": "group_norm", "tweets": "rloo"}[name]
        base = found["variants"].get(reference)
        for label, row in found["variants"].items():
            own = {"sort": SORT, "grid": GRID, "tweets": TWEETS}[name].get(label, ("", "", {}))
            row.setdefault("steps_a_batch", own[2].get("epochs", 1))
        if base is not None:
            found["better"] = compared(found["variants"], base, "against_baseline", reference)
        found["baseline"] = reference
    if "trl" in results:
        rows = results["recipes"]
        for row in [results["trl"], *rows.values()]:
            row.setdefault("steps_a_batch", row["chosen"][0])
        results["trl"] |= interval(results["trl"]["scores"])
        results["better_than_trl"] = compared(rows, results["trl"], "against_trl")
        results["at_least_as_good_as_trl"] = sorted(
            (label for label, row in rows.items() if row["against_trl"]["mean"] >= 0), key=lambda n: -rows[n]["mean"]
        )
    results["coverage"] = {str(n): simulated(n, repeats) for n in sorted({results["seeds"], 10})}
    results["without_record"] = unrecorded(results["families"])
    results["mended_since"] = [label for label in MENDED if results["seeds"] < 10]


def unrecorded(found: Mapping[str, Any]) -> dict[str, list[str]]:
    """Labels of each family's table that its record lacks: added since, or not asked for."""
    tables = {"sort": SORT, "grid": GRID, "tweets": TWEETS}
    return {name: [label for label in tables[name] if label not in family["variants"]] for name, family in found.items()}


def simulated(seeds: int, repeats: int) -> dict[str, dict[str, float]]:
    """Coverage of the three intervals (.95 wanted) at this number of runs, for scores that are normal and shares that are
    skewed.
    """
    laws = {
        "normal": (lambda rng: rng.normal(size=seeds), 0.0),
        "skewed (beta 2, 8)": (lambda rng: rng.beta(2, 8, size=seeds), 0.2),
    }
    kinds = {
        "percentile bootstrap": lambda v: bootstrap(v, statistic=np.mean), "student t": mean_interval,
        "studentised bootstrap": lambda v: studentised(v, resamples=499),
    }  # fmt: skip
    return {
        law: {kind: round(coverage(made, draw, truth, repeats=repeats), 3) for kind, made in kinds.items()}
        for law, (draw, truth) in laws.items()
    }


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No warnings and no log meanwhile; what the process had before comes back, for whoever calls `main`."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


@quiet()
def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a look: 1/16 of the tokens, 2 seeds, one rate, rough coverage")
    parser.add_argument("--families", default="sort,grid,tweets,trl")
    parser.add_argument("--variants", default="", help="only these, by label")
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--assess", action="store_true", help="no runs: intervals and claims from the scores on record")
    parser.add_argument("--tokens", type=int, default=0, help="of every run of the families asked for; 0: their own")
    parser.add_argument("--out", type=Path, default=None)
    parser.add_argument("--cells", type=Path, default=Path("runs/bench-recipes"))
    args = parser.parse_args(argv)
    if args.assess:
        out = args.out or ROOT / "benchmarks/results/recipes.json"
        results = records.read_json(out)
        assess(results)
        records.write_json(out, results)
        print(f"written: {out}")
        return
    torch.set_num_threads(1)
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    seeds, only = (2 if args.quick else args.seeds), set(filter(None, args.variants.split(",")))
    every, cells, asked = families(args.cells), Cells(args.cells), args.families.split(",")
    share = 16 if args.quick else 1
    results: dict[str, Any] = {
        "task": __doc__.split("\n")[0], "seeds": seeds, "quick": args.quick, "families": {}, "not_run": NOT_RUN,
        "versions": versions(), "hardware": records.hardware(),
    }  # fmt: skip
    out = args.out or (args.cells / "quick.json" if args.quick else ROOT / "benchmarks/results/recipes.json")
    if out.exists():  # what is not asked for stays
        old = records.read_json(out)
        results["families"] = {name: rows for name, rows in old["families"].items() if name not in asked}
        results |= {key: old[key] for key in ("trl", "recipes") if key in old and "trl" not in asked}
    for name in [f for f in every if f in asked]:
        family, tokens, rows = every[name], (args.tokens or every[name].tokens) // share, {}
        results["families"][name] = {
            "tokens": tokens, "prompts": family.prompts, "group": family.group, "tau": family.tau,
            "rates": list(family.rates), "variants": rows,
        }  # fmt: skip
        for label, variant in family.variants.items():
            if only and label not in only:
                continue
            rates = variant[2].get("rates", family.rates)
            rows[label] = {"slot": variant[0], "recipe": variant[1]} | measure(
                cells, name, label, rates[:1] if args.quick else rates,
                lambda rate, seed, spend, v=variant, f=family: run(f, v, rate, seed, spend), seeds, tokens,
            )  # fmt: skip
            show(name, label, rows[label])
    if "trl" in asked:
        family, tokens = every["sort"], (args.tokens or every["sort"].tokens) // share
        choices = [[steps, rate] for steps in (1, 2) for rate in RATES]
        results["trl"] = measure(
            cells, "trl", "grpo", choices[:1] if args.quick else choices,
            lambda c, seed, spend: run_trl(family, c[0], c[1], seed, spend), seeds, tokens,
        )  # fmt: skip
        show("trl", "grpo", results["trl"])
        results["recipes"] = {}
        for label, recipe in WHOLE.items():
            if only and label not in only:
                continue
            results["recipes"][label] = {"recipe": recipe} | measure(
                cells, "recipe", label, choices[:1] if args.quick else choices,
                lambda c, seed, spend, r=recipe: run(family, ("recipe", r, {"epochs": c[0]}), c[1], seed, spend), seeds,
                tokens,
            )  # fmt: skip
            show("recipe", label, results["recipes"][label])
    assess(results, 20 if args.quick else 400)
    records.write_json(out, results)
    print(f"written: {out}")


def show(name: str, label: str, row: Mapping[str, Any]) -> None:
    print(f"{name:7s} {label:22s} {row['mean']:.3f} [{row['low']:.3f}, {row['high']:.3f}]  chosen {row['chosen']}  "
          f"{row['tokens']} tokens  {row['seconds']:.1f} s", flush=True)  # fmt: skip


def versions() -> dict[str, str]:
    import transformers
    import trl

    return {"bilevel_rl": __version__, "torch": torch.__version__, "transformers": transformers.__version__,
            "trl": trl.__version__}  # fmt: skip


if __name__ == "__main__":
    main()
