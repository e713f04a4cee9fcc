"""Why methods end where they do on the paper's happy tweets: steps exchanged, brackets left out, noise of the bracket.

    python benchmarks/paper_tweets.py run --out FOLDER       makes the rows, among those of the study
    python benchmarks/paper_tweets.py noise --out FOLDER     the spread of the bracket at a state, for each law of the draws

*Bracket*: (1/w)(E_pi - E_pi^L)[grad_x r], what x of a bi-level method sees beside the likelihood of the labels. Left out,
everything else stays: theta^L, its incentive, its rows and who is judged.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from bilevel_rl.experiments.paper_tweets import ENTRIES, UPDATES, Setting
from bilevel_rl.levels.methods import Paired, Shared, Tilted
from bilevel_rl.llm.sampling.sampler import inverse_cdf, race
from bilevel_rl.llm.trainer import BilevelTrainer

SEEDS = range(100, 108)  # of the exchanged steps
# name -> entry, whose alpha, zeta and optimiser of x, bracket left out, theta^L's incentive left out
SWAPS = {
    "partial_sgd with the steps of paired": ("partial_sgd", "paired", False, False),
    "paired with the steps of partial_sgd": ("paired", "partial_sgd", False, False),
    "paired with the steps of partial_sgd, no bracket": ("paired", "partial_sgd", True, False),
    "paired with the steps of partial_sgd, no bracket, no incentive": ("paired", "partial_sgd", True, True),
}
NOTHING = 1e-9  # a weight of the win rate that pays theta^L nothing
BEFORE, DRAWS, STATES = UPDATES // 2, 24, (100, 101, 102)  # updates before the state is frozen; draws there; seeds


@dataclasses.dataclass(frozen=True)
class PairedOff(Paired):
    """`paired` whose x sees the direct gradient alone; theta^L, its incentive and its rows stay."""

    def coefficients(self, followers: Any, ratios: Any, answer: Any, at: Any) -> Any:
        return None


@dataclasses.dataclass(frozen=True)
class SharedOff(Shared):
    """`shared` likewise."""

    def coefficients(self, followers: Any, ratios: Any, answer: Any, at: Any) -> Any:
        return None


@dataclasses.dataclass(frozen=True)
class TiltedOff(Tilted):
    """`tilted` likewise: nothing is left beside partial SGD."""

    def coefficients(self, followers: Any, ratios: Any, answer: Any, at: Any) -> Any:
        return None


OFF = {"paired": PairedOff, "shared": SharedOff, "tilted": TiltedOff}


def exchanged(own: Setting, other: Setting) -> Setting:
    """A setting with another one's steps.

    Example:
        >>> exchanged(Setting(1.0, 2.0, w=3.0), Setting(4.0, 5.0, "sgd_x"))
        Setting(alpha=4.0, zeta=5.0, optimizer='sgd_x', w=3.0, win_rate=1.0, coupling=0.5, fit=60)
    """
    return dataclasses.replace(own, alpha=other.alpha, zeta=other.zeta, optimizer=other.optimizer)


def swaps(chosen: dict[str, Setting]) -> dict[str, tuple[str, Setting, bool]]:
    """The exchanged runs, by name: entry, setting, bracket left out; none while a choice is missing."""
    return {
        name: (entry, dataclasses.replace(setting, win_rate=NOTHING) if unpaid else setting, off)
        for name, (entry, other, off, unpaid) in SWAPS.items()
        if entry in chosen and other in chosen
        for setting in [exchanged(chosen[entry], chosen[other])]
    }


def noise(bench: Any, setting: Setting) -> dict[str, Any]:
    """The bracket of `paired` at frozen states, again and again, by each law of the draws.

    Half a run is made with the race; then nothing moves, and both policies write `DRAWS` batches by each law. Of the
    gradients in x: the norm of their mean, and the root of their summed variances.

    Args:
        bench: of the task.
        setting: of `paired`.

    Returns:
        By law (`race`, `inverse`, `none`) and for the direct gradient of the race: `mean` and `spread` over states, and
        the share of tokens on which the two policies agree.
    """
    found: dict[str, list[tuple[float, float]]] = {}
    agreed: dict[str, list[float]] = {}
    for seed in STATES:
        trainer = _half_way(bench, setting, seed)
        for law, choose in (("race", race), ("inverse", inverse_cdf), ("none", inverse_cdf)):
            trainer.generator.choose = choose
            trainer.engine.config = dataclasses.replace(trainer.config, common_numbers=law)
            direct, penalty, same = _drawn(trainer)
            found.setdefault(law, []).append(_moments(penalty))
            agreed.setdefault(law, []).append(same)
            if law == "race":
                found.setdefault("direct", []).append(_moments(direct))
    lines = {
        law: {"mean": [round(m, 4) for m, _ in states], "spread": [round(s, 4) for _, s in states]}
        for law, states in found.items()
    }
    return {"states": list(STATES), "updates_before": BEFORE, "draws": DRAWS, "gradients": lines,
            "tokens_alike": {law: [round(v, 4) for v in shares] for law, shares in agreed.items()}}  # fmt: skip


def _half_way(bench: Any, setting: Setting, seed: int) -> BilevelTrainer:
    config = bench.world.configuration("paired", setting, bench.task, seed)
    judge = bench.task.judge(bench.world.sharpness, seed, bench.gold)
    trainer = BilevelTrainer(config, None, None, bench.task.prompts, tokenizer=bench.tokenizer, judge=judge)
    while trainer.step < BEFORE:
        trainer.iterate(trainer.step)
        trainer.step += 1
        trainer.engine.moved()
    return trainer


@torch.no_grad()
def _alike(followers: Any) -> float:
    """Share of the longer texts' tokens that both policies wrote alike, place by place."""
    a, b = (f.rows for f in followers)
    width = max(a.mask.shape[1], b.mask.shape[1])

    def wide(tokens: torch.Tensor, fill: int) -> torch.Tensor:
        return torch.nn.functional.pad(tokens, (0, width - tokens.shape[1]), value=fill)

    both = (wide(a.mask, 0) > 0) | (wide(b.mask, 0) > 0)
    same = (wide(a.completions, -1) == wide(b.completions, -1)) & (wide(a.mask, 0) > 0) & (wide(b.mask, 0) > 0)
    return float((same & both).sum() / both.sum())


def _drawn(trainer: BilevelTrainer) -> tuple[np.ndarray, np.ndarray, float]:
    """[draws, parameters] of the direct gradient and of the bracket, where nothing moves; share of tokens alike."""
    direct, penalty, same = [], [], []
    count, known = trainer.leader.count, len(trainer.leader.replay)
    at = trainer.at(BEFORE)
    for draw in range(DRAWS):
        k = UPDATES + draw  # numbers and prompts that the run has not had
        followers = trainer.score(trainer.sample(k), at.tau, False, k)
        answer = trainer.leader.ask(followers[-1], None, {}, k)
        assert answer is not None
        hyper = trainer.method.hyper_gradient(trainer.leader, followers, None, answer, at, k)
        for kept, part in ((direct, hyper.direct), (penalty, hyper.penalty)):
            kept.append(torch.cat([g.flatten() for g in part]).double().numpy())
        same.append(_alike(followers))
        trainer.leader.count = count
        del trainer.leader.replay[known:]
    return np.stack(direct), np.stack(penalty), float(np.mean(same))


def _moments(gradients: np.ndarray) -> tuple[float, float]:
    """Norm of the mean, cleared of its noise, and the root of the summed variances of one draw."""
    variance = float(gradients.var(0, ddof=1).sum())
    squared = float((gradients.mean(0) ** 2).sum()) - variance / len(gradients)
    return max(squared, 0.0) ** 0.5, variance**0.5


def bi_level() -> tuple[str, ...]:
    """Entries whose x sees a bracket."""
    return tuple(entry for entry, method in ENTRIES.items() if method in OFF)
