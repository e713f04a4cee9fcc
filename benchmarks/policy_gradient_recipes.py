"""Which recipes learn: all that a single-turn task can feed, on the same tiny language model, tokens and seeds.

    python benchmarks/policy_gradient_recipes.py [--recipes grpo,rloo] [--seeds 5] [--iterations 60] [--rates 1e-3,3e-3]

Task: sort four letters (`sort:dbca=` -> `abcd`), exact reward 0 or 1, problems held out by a hash. A character-level
GRU (width 96) is warmed up by supervised learning until it is right about a third of the time; every recipe
starts from the same weights of its seed. 16 prompts x 8 responses an iteration; recipes whose loss allows for older
samples take two gradient steps on each batch, the others one. Adam. With several `--rates` each recipe chooses one on a
seed of its own, outside those that count; with one, all use it. Score: share of right answers sampled on the held-out
problems.
"""

from __future__ import annotations

import argparse
import copy
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bilevel_rl.llm.tasks import arithmetic
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.credit import GAE, Polychromic
from bilevel_rl.policy_gradient.credit.gae import value_targets
from bilevel_rl.policy_gradient.credit.optimal_baseline import logit_score_norm
from bilevel_rl.policy_gradient.credit.truncated import finished_only
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.recipes import named
from bilevel_rl.policy_gradient.regularizers.kl import exact_kl
from bilevel_rl.policy_gradient.reward import SoftOverlong
from bilevel_rl.policy_gradient.reward.novelty import sensitivity
from bilevel_rl.policy_gradient.segments import masked_mean
from bilevel_rl.policy_gradient.select.replay import Replay
from bilevel_rl.records import hardware
from bilevel_rl.statistics import bootstrap

CODEC = arithmetic.Characters()
PROMPTS, SAMPLES, NEW, WIDTH = 16, 8, 6, 96
RECIPES = (
    "reinforce", "rloo", "remax", "reinforce_pp", "ppo", "grpo", "dr_grpo", "dapo", "gspo", "cispo", "opo", "oblr",
    "empg", "adora", "copo", "dvao", "t_ppo", "polychromic", "d3s", "clip_cov", "kl_cov", "epo", "safe", "g2rl", "r3",
    "copg", "p3o", "direct_advantage", "mdpo", "self_play_win_rate", "hpt",
)  # fmt: skip


def problems(held_out: bool, number: int, seed: int = 0) -> tuple[Tensor, list[arithmetic.Problem]]:
    """Prompts of equal length as token ids [P, L], and the problems."""
    found = arithmetic.generate(number, seed, kinds=("sort",), levels=(3,), held_out=held_out)
    return torch.tensor([CODEC.encode(p.prompt) for p in found]), found


class Recurrent(nn.Module):
    """A character-level GRU with a softmax head."""

    def __init__(self, width: int = WIDTH) -> None:
        super().__init__()
        self.embed = nn.Embedding(len(CODEC), 32)
        self.cell = nn.GRU(32, width, batch_first=True)
        self.lm_head = nn.Linear(width, len(CODEC), bias=False)

    def hidden(self, tokens: Tensor) -> Tensor:
        """[N, L, WIDTH] states after each token."""
        return self.cell(self.embed(tokens))[0]


def warm_up(seed: int, target: float = 0.3) -> Recurrent:
    """Supervised learning on the training problems until a third of the held-out answers are right."""
    torch.manual_seed(seed)
    model = Recurrent()
    prompts, found = problems(False, 2000)
    answers = torch.tensor([[*CODEC.encode(p.answer), CODEC.end] for p in found])
    held, held_found = problems(True, 256)
    optimiser = torch.optim.Adam(model.parameters(), lr=3e-3)
    g = torch.Generator().manual_seed(seed)
    for step in range(1, 4001):
        rows = torch.randint(len(found), (64,), generator=g)
        tokens = torch.cat([prompts[rows], answers[rows]], 1)
        logits = model.lm_head(model.hidden(tokens[:, :-1])[:, prompts.shape[1] - 1 :])
        loss = torch.nn.functional.cross_entropy(
            logits.flatten(0, 1), tokens[:, prompts.shape[1] :].flatten()
        )
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        if step % 20 == 0 and accuracy(model, held, held_found, g) >= target:
            break
    return model


@torch.no_grad()
def sample(
    model: Recurrent, prompts: Tensor, g: torch.Generator, greedy: bool = False
) -> tuple[Tensor, Tensor]:
    """Completions [N, NEW] (padding after the end) and their mask."""
    state, done = model.cell(model.embed(prompts)), torch.zeros(len(prompts), dtype=torch.bool)
    out, mask = [], []
    for _ in range(NEW):
        logits = model.lm_head(state[0][:, -1])
        drawn = logits.argmax(-1) if greedy else torch.multinomial(logits.softmax(-1), 1, generator=g)[:, 0]
        drawn = torch.where(done, CODEC.pad, drawn)
        out.append(drawn)
        mask.append(~done)
        done = done | (drawn == CODEC.end)
        state = model.cell(model.embed(drawn[:, None]), state[1])
    return torch.stack(out, 1), torch.stack(mask, 1)


def texts(tokens: Tensor) -> list[str]:
    return [CODEC.decode(row) for row in tokens.tolist()]


def accuracy(model: Recurrent, prompts: Tensor, found: list[arithmetic.Problem], g: torch.Generator) -> float:
    completions = texts(sample(model, prompts, g)[0])
    return float(np.mean([arithmetic.verify(p.prompt, c) for p, c in zip(found, completions, strict=True)]))


class Learner:
    """A model with a critic, a reference and a recipe; one run."""

    def __init__(self, recipe: Recipe, start: Recurrent, rate: float, seed: int) -> None:
        self.recipe, self.model, self.ref = recipe, copy.deepcopy(start), copy.deepcopy(start)
        torch.manual_seed(seed)
        self.critic = torch.nn.Linear(WIDTH, 1)
        self.names = {c.card.name for c in recipe.components}
        self.optimiser = torch.optim.Adam([*self.model.parameters(), *self.critic.parameters()], lr=rate)
        self.g = torch.Generator().manual_seed(seed)
        self.memory = recipe.init()
        self.needs = {n for c in recipe.components for n in c.card.needs}
        self.steps = 2 if {"old", "ref"} & set(recipe.loss.card.needs) else 1
        self.samples = 0

    def look(self, tokens: Tensor, completions: Tensor, mask: Tensor) -> dict[str, Tensor]:
        """Everything of the policy's own, with gradient."""
        length = tokens.shape[1]
        out = self.model.hidden(torch.cat([tokens, completions], 1)[:, :-1])[:, length - 1 :]
        logits = self.model.lm_head(out)
        law = logits.log_softmax(-1)
        fields = {"logp": law.gather(-1, completions[..., None])[..., 0]}
        if {"entropy", "kl"} & self.needs:
            fields["entropy"] = -(law.exp() * law).sum(-1)
        if "value" in self.needs:
            fields["value"] = self.critic(out.detach())[..., 0]
        if "kl" in self.needs:
            with torch.no_grad():
                ref = self.ref.lm_head(
                    self.ref.hidden(torch.cat([tokens, completions], 1)[:, :-1])[:, length - 1 :]
                )
            fields["kl"] = exact_kl(logits, ref)
        fields["logits"] = logits
        return fields

    def batch(
        self, prompts: Tensor, found: list[arithmetic.Problem], progress: float, iteration: int
    ) -> Batch:
        rows = torch.randint(len(found), (PROMPTS,), generator=self.g)
        # a demonstration takes the place of one sample
        samples = SAMPLES - 1 if "demonstration" in self.needs else SAMPLES
        index = rows.repeat_interleave(samples)
        tokens = prompts[index]
        completions, mask = sample(self.model, tokens, self.g)
        self.samples += int(mask.sum())
        extras: dict[str, Any] = {}
        if "baseline" in self.needs:
            greedy = texts(sample(self.model, prompts[rows], self.g, greedy=True)[0])
            best = [arithmetic.verify(found[r].prompt, c) for r, c in zip(rows.tolist(), greedy, strict=True)]
            extras["baseline"] = torch.tensor(best).repeat_interleave(samples)
            self.samples += PROMPTS * NEW
        if "demonstration" in self.needs:
            gold = torch.full((PROMPTS, NEW), CODEC.pad)
            for k, r in enumerate(rows.tolist()):
                answer = [*CODEC.encode(found[r].answer), CODEC.end]
                gold[k, : len(answer)] = torch.tensor(answer)
            tokens, completions = torch.cat([tokens, prompts[rows]]), torch.cat([completions, gold])
            mask, index = torch.cat([mask, gold != CODEC.pad]), torch.cat([index, rows])
            extras["demonstration"] = torch.arange(len(index)) >= PROMPTS * samples
        written = texts(completions)
        pairs = [(found[r].prompt, c) for r, c in zip(index.tolist(), written, strict=True)]
        terms = [
            [f(p, c) for f in (arithmetic.REWARDS if "dvao" in self.names else (arithmetic.verify,))]
            for p, c in pairs
        ]
        last = torch.zeros_like(mask)
        last[torch.arange(len(mask)), mask.sum(1) - 1] = True
        answers = {c: k for k, c in enumerate(dict.fromkeys(written))}
        with torch.no_grad():
            seen = self.look(tokens, completions, mask)
            logits = seen.pop("logits")
            ref = self.ref.lm_head(
                self.ref.hidden(torch.cat([tokens, completions], 1)[:, :-1])[:, tokens.shape[1] - 1 :]
            )
            if "score_norm" in self.needs:
                extras["score_norm"] = logit_score_norm(logits, completions)
            if "sensitivity" in self.needs:
                extras["sensitivity"] = sensitivity(logits, completions, self.model.lm_head.weight, mask)
        ended = (completions == CODEC.end).any(1)
        return Batch.make(
            mask=mask, reward=torch.where(last[..., None], torch.tensor(terms)[:, None, :], 0), group=index,
            trajectory=torch.arange(len(index)) + 100_000 * iteration, done=ended, **seen, old=seen["logp"],
            ref=ref.log_softmax(-1).gather(-1, completions[..., None])[..., 0],
            answer=[answers[c] for c in written], turn=torch.zeros_like(completions),
            tokens_in=tokens, completions=completions, **extras,
            memory=self.memory, progress=progress, iteration=iteration,
        )  # fmt: skip

    def step(
        self, prompts: Tensor, found: list[arithmetic.Problem], progress: float, iteration: int
    ) -> float:
        fresh = self.batch(prompts, found, progress, iteration)
        ready = self.recipe.prepare(fresh)
        for rule in self.recipe.select:
            if isinstance(rule, Replay):
                rule.buffer.add(fresh)
        right = float(fresh.scores[:, 0].mean())
        if not len(ready):
            return right
        target = value_targets(ready).detach() if ready.value is not None else None
        for _ in range(self.steps):
            look = self.look(ready.get("tokens_in"), ready.get("completions"), ready.mask)
            look.pop("logits")
            value = look.pop("value", None)
            loss, _ = self.recipe.objective(ready.replace(**look))
            if value is not None and target is not None:
                known = finished_only(ready) if "truncated_gae" in self.names else ready.mask
                loss = loss + 0.5 * masked_mean((value - target).square(), known)
            self.optimiser.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
            self.optimiser.step()
        self.memory = self.recipe.update(
            self.memory, ready.replace(**{k: v.detach() for k, v in look.items()})
        )
        return right


def fitted(name: str) -> Recipe:
    """The recipe with the few options that depend on the task."""
    recipe = named(name)
    if name == "dapo":
        return dataclasses.replace(recipe, reward=(SoftOverlong(limit=NEW, cache=1),))
    if name == "ppo" or name == "safe":
        return dataclasses.replace(recipe, credit=GAE(gamma=1.0, lam=1.0))
    if name == "polychromic":
        return dataclasses.replace(recipe, credit=Polychromic(size=2))
    if name == "r3":
        return dataclasses.replace(recipe, select=(Replay(),))  # a buffer of its own
    return recipe


def run(name: str, start: Recurrent, rate: float, seed: int, iterations: int) -> dict[str, Any]:
    """Accuracy on held-out problems before and after, and along the way on the training ones."""
    prompts, found = problems(False, 2000)
    held, held_found = problems(True, 512)
    learner = Learner(fitted(name), start, rate, seed)
    curve = [learner.step(prompts, found, k / iterations, k) for k in range(iterations)]
    end = accuracy(learner.model, held, held_found, torch.Generator().manual_seed(1))
    return {"accuracy": end, "tokens": learner.samples, "training": [round(x, 4) for x in curve[::10]]}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--recipes", default=",".join(RECIPES))
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=60)
    parser.add_argument("--rates", default="3e-3")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/policy_gradient_recipes.json"))
    args = parser.parse_args()
    torch.set_num_threads(1)
    rates = [float(r) for r in args.rates.split(",")]
    begin = time.time()
    held, held_found = problems(True, 512)
    starts = [warm_up(seed) for seed in range(args.seeds + 1)]  # the last one is for tuning
    before = [accuracy(m, held, held_found, torch.Generator().manual_seed(1)) for m in starts]
    print(f"warm-up: {before} in {time.time() - begin:.0f} s", flush=True)
    result: dict[str, Any] = {
        "task": "sort four letters", "prompts": PROMPTS, "samples": SAMPLES, "iterations": args.iterations,
        "rates": rates, "warm_up_accuracy": before[:-1], "recipes": {}, "hardware": hardware(),
    }  # fmt: skip
    if args.out.exists():  # recipes measured before with the same settings stay
        old = json.loads(args.out.read_text())
        if all(
            old[k] == result[k] for k in ("prompts", "samples", "iterations", "rates", "warm_up_accuracy")
        ):
            result["recipes"] = old["recipes"]
    for name in args.recipes.split(","):
        begin = time.time()
        tuning = (
            {r: run(name, starts[-1], r, 1000, args.iterations)["accuracy"] for r in rates}
            if rates[1:]
            else {}
        )
        rate = max(tuning, key=lambda r: tuning[r]) if tuning else rates[0]
        runs = [run(name, starts[seed], rate, seed, args.iterations) for seed in range(args.seeds)]
        scores = [r["accuracy"] for r in runs]
        interval = bootstrap(np.array(scores), statistic=np.mean)
        result["recipes"][name] = {
            "mean": float(np.mean(scores)), "low": float(interval.low), "high": float(interval.high), "rate": rate,
            "tuning": {str(k): v for k, v in tuning.items()}, "runs": runs, "seconds": time.time() - begin,
        }  # fmt: skip
        print(f"{name:22s} {np.mean(scores):.3f} [{interval.low:.3f}, {interval.high:.3f}]  rate {rate:g}  "
              f"{time.time() - begin:.0f} s", flush=True)  # fmt: skip
        args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
