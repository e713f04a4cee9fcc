"""What is measured in an iteration: one line of `metrics.jsonl`, and the signs of trouble in it."""

from __future__ import annotations

import logging
import math
import resource
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from bilevel_rl.levels.estimators import Ratios
    from bilevel_rl.levels.followers import Scored

log = logging.getLogger(__name__)
NAMES = {"policy": "gradient_policy", "policy_l": "gradient_policy_l", "critic": "gradient_critic",
         "critic_l": "gradient_critic_l"}  # fmt: skip


def of_followers(
    theta: Scored, theta_l: Scored, made: int, ratios: Ratios | None, gold: Tensor | None, gap: bool,
    seconds: float,
) -> dict[str, float]:  # fmt: skip
    """What the rows say; every key is a metric of `bilevel_rl.metrics`.

    Args:
        theta, theta_l: scored followers; the same one when there is no second.
        made: tokens generated in this iteration.
        ratios: importance of theta's completions for theta^L.
        gold: [N] gold scores of theta's completions.
        gap: whether J(pi) - J(pi^L) means anything here.
        seconds: since the iteration began.
    """
    y, mask = theta.rows, theta.rows.mask
    line = {
        "learned_reward": float(theta.reward.mean()),
        "kl": float(theta.kl.sum(1).mean()),
        "entropy": float(theta.entropy.sum() / mask.sum()),
        "length": float(y.lengths.double().mean()),
        "truncated": float((~y.ended).double().mean()),
        "tokens_per_second": made / seconds,
    }
    if gold is not None:
        line["gold"] = float(gold.mean())
    if gap:
        line["policy_gap"] = policy_gap(theta, theta_l, ratios)
    if ratios is not None:
        log_rho = ((theta_l.logp - theta.logp) * mask).sum(1)
        line["ess"] = ratios.effective
        line["ratio_clipped"] = ratios.clipped
        line["divergence"] = float((ratios.sequence - 1 - log_rho.clamp(-30, 30)).mean().clamp(min=0))
    return line


def of_sampler(theta: Scored, clip: float) -> dict[str, float]:
    """How far the law that wrote the rows is from theta's."""
    gap = ((theta.logp - theta.rows.logp) * theta.rows.mask).detach()
    tokens = theta.rows.mask.sum()
    return {
        "sampler_gap": float(gap.abs().sum() / tokens),
        "sampler_clipped": float((gap > math.log(clip)).sum() / tokens),
    }


def policy_gap(theta: Scored, theta_l: Scored, ratios: Ratios | None) -> float:
    """J_tau(pi) - J_tau(pi^L) by sampling."""
    returns = theta.reward - theta.cost.sum(1)
    if ratios is None:
        return float(returns.mean() - (theta_l.reward - theta_l.cost.sum(1)).mean())
    returns_l = theta.reward - theta_l.cost.sum(1)
    weights = ratios.sequence / ratios.sequence.mean()
    return float((returns - weights * returns_l).mean())


def memory(device: Any) -> float:
    """Peak memory of this process so far, in GiB (of the accelerator where there is one)."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated() / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class Warnings:
    """Says once when the entropy has collapsed, or the importance ratios tell nothing any more."""

    TEXTS: Mapping[str, str] = {
        "entropy": "the policy's entropy is below a tenth of what it was at the start: raise tau, or lower alpha",
        "ess": "fewer than a tenth of the importance ratios count: lower w or alpha, or set estimator=tilted",
    }

    def __init__(self) -> None:
        self.said: set[str] = set()

    def look(self, step: int, history: Sequence[Mapping[str, float]], line: Mapping[str, float]) -> None:
        """Log what the line shows, if it is new."""
        first = next((old["entropy"] for old in history if "entropy" in old), None)
        signs = {
            "entropy": first is not None and line.get("entropy", math.inf) < 0.1 * first,
            "ess": line.get("ess", 1.0) < 0.1,
        }
        for key, there in signs.items():
            if there and key not in self.said:
                self.said.add(key)
                log.warning("iteration %d: %s", step, self.TEXTS[key])
