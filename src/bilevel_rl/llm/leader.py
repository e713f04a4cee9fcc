"""The leader's side of an iteration: labels asked for and kept, stored pairs drawn, f evaluated on a follower.

`Leader.ask` is one line of the algorithm: f and its gradients on the penalised follower's completions, with fresh
labels while the budget lasts.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels import estimators
from bilevel_rl.levels.guards import check_finite
from bilevel_rl.levels.objectives import Sample, Upper
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.llm import setup
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.followers import Follower, distinct
from bilevel_rl.llm.forward import precision
from bilevel_rl.llm.judges.asking import LabelsPending, ask, choose_pairs
from bilevel_rl.llm.rewards.functions import call_reward_function
from bilevel_rl.llm.roles.backend import Roles
from bilevel_rl.llm.sampling.rollout import Rollout, from_pairs

STORED, REPLAY = 0x22, 0x23  # random streams, beside those of `trainer` and `differences`


class Leader:
    """What the upper level knows, and how it learns more.

    Args:
        config: budgets, seed, method.
        roles, processes, share: the weights, and who computes which rows.
        objective: f.
        judge, gold: whom to ask; None where f needs neither.
        stored: preference pairs known from the start.
        pad_id, tokenizer: of completions made from pairs.

    Attributes:
        labels: asked for so far.
        replay: pairs labelled so far, where they are used again.
    """

    def __init__(
        self, config: Config, roles: Roles, processes: Processes, share: Share, objective: Any, judge: Any,
        gold: Callable[..., Sequence[float]] | None, stored: list[setup.Pair], pad_id: int, tokenizer: Any,
    ) -> None:  # fmt: skip
        self.config, self.roles, self.processes, self.share = config, roles, processes, share
        self.objective, self.judge, self.gold, self.stored = objective, judge, gold, stored
        self.pad_id, self.tokenizer = pad_id, tokenizer
        self.labels = 0
        self.replay: list[setup.Pair] = []

    def fresh_labels(self) -> int:
        """How many pairs (or gold scores) the judge may still be asked for in this iteration."""
        config, left = self.config, math.inf
        if config.label_budget:
            left = config.label_budget - self.labels
        if self.objective.needs_gold:
            return config.batch if left >= config.batch else 0
        return int(min(config.pairs_per_step, left)) if self.objective.needs_pairs else 0

    def ask(
        self, f: Follower, ratios: estimators.Ratios | None, gold: dict[str, Tensor], k: int
    ) -> tuple[Upper | None, Sample | None]:
        """f and its gradients on a follower's completions, with fresh labels while the budget lasts."""
        fresh = self.fresh_labels()
        known = self.replay or self.objective.needs_stored
        if not fresh and (self.objective.needs_gold or (self.objective.needs_pairs and not known)):
            return None, None  # the labels are spent and nothing else tells of f: x stays where it is
        pairs = (
            choose_pairs(f.rollout.group, fresh, self.config.seed, k, f.rollout.texts)
            if self.objective.needs_pairs
            else None
        )
        pairs = self._judge(f.rollout, pairs) if pairs is not None else torch.empty(0, 2, dtype=torch.long)
        if self.objective.needs_gold:
            self.labels += f.rollout.size
        sample = self.sample(f.rollout, f.reward, ratios, gold.get(f.role), pairs, k)
        upper = self.evaluate(sample, k)
        if self.config.replay_pairs or self.config.method == "fixed_reward":
            ids = f.rollout.completion_ids()
            self.replay += [(f.rollout.prompts[i], tuple(ids[i]), tuple(ids[j])) for i, j in pairs.tolist()]
        return upper, sample

    def gold_scores(self, theta: Follower, theta_l: Follower) -> dict[str, Tensor]:
        """Gold scores of each follower's completions, by role; a label each when f is made of them."""
        if self.gold is None:
            return {}
        found = {}
        for f in (theta, theta_l):
            if f.rollout is theta.rollout and "policy" in found:
                found[f.role] = found["policy"]
                continue
            mine = call_reward_function(self.gold, f.mine, "gold")
            found[f.role] = self.processes.gather(mine.to(f.logp))
        return found

    def sample(
        self, rollout: Any, reward: Tensor, ratios: estimators.Ratios | None, gold: Tensor | None, pairs: Tensor,
        k: int,
    ) -> Sample:  # fmt: skip
        """What the objective may look at: the batch, its judged pairs, and seeded draws of what is stored."""
        config = self.config
        weights = torch.ones_like(reward) if ratios is None else ratios.sequence
        fixed_batch = 2 * config.pairs_per_step if config.method == "fixed_reward" else 0
        stored, stored_total = self._drawn(
            self.stored if self.objective.needs_stored else [], config.pairs_per_step, STORED, k
        )
        replayed, replayed_total = self._drawn(self.replay, config.replay_pairs or fixed_batch, REPLAY, k)
        return Sample(
            rollout, reward.clone().requires_grad_(), weights, gold, pairs.to(reward.device), self.roles.rewards,
            stored, stored_total, replayed, replayed_total, k,
        )  # fmt: skip

    def evaluate(self, sample: Sample, k: int) -> Upper:
        """The objective's answer, its value summed over processes.

        Raises:
            NonFiniteState: a bonus or a loss that is NaN or infinite.
        """
        with self.roles.model("reward"), precision(self.config.dtype, self.processes.device):
            upper = self.objective.evaluate(sample)
        if self.processes.count > 1:
            share = torch.tensor([upper.share], dtype=torch.float64, device=self.processes.device)
            self.processes.add([share])
            upper.share = float(share)
        upper.value, upper.share = upper.value + upper.share, 0.0
        check_finite("upper objective's bonus", upper.bonus, k)
        if upper.loss is not None:
            check_finite("upper objective", upper.loss, k)
        return upper

    def stored_alone(self, k: int) -> tuple[Upper, tuple[list[Tensor], list[Tensor]] | None]:
        """f and its gradient on the pairs there are, without a rollout: what fits x once the labels are spent."""
        parameters = list(self.roles.parameters("reward").values())
        nothing = torch.zeros(0, device=self.processes.device, dtype=parameters[0].dtype)
        none = torch.empty(0, 2, dtype=torch.long)
        upper = self.evaluate(self.sample(None, nothing, None, None, none, k), k)
        if upper.loss is None:
            return upper, None
        direct = [torch.zeros_like(p) for p in parameters]
        with self.roles.model("reward"):
            _accumulate(direct, torch.autograd.grad(upper.loss, parameters, allow_unused=True))
        self.processes.add(direct)
        for d, p in zip(direct, parameters, strict=True):
            d.add_(2 * self.config.x_penalty * p.detach())
        return upper, (direct, [torch.zeros_like(d) for d in direct])

    def hyper_gradient(
        self,
        followers: list[Follower],
        coefficients: list[Tensor] | None,
        upper: Upper | None,
        sample: Sample | None,
    ) -> tuple[list[Tensor], list[Tensor]] | None:
        """grad_x f and (1/w)(E_pi - E_pi^L)[grad_x r], each as one tensor a parameter, summed over processes.

        None when f is unknown (labels spent and nothing to replay).
        """
        if upper is None:
            return None
        parameters = list(self.roles.parameters("reward").values())
        direct = [torch.zeros_like(p) for p in parameters]
        penalty = [torch.zeros_like(p) for p in parameters]
        leaf = None
        if upper is not None and upper.loss is not None and upper.loss.requires_grad:
            with self.roles.model("reward"):
                leaf, *grads = torch.autograd.grad(
                    upper.loss, [sample.rewards, *parameters], allow_unused=True
                )
            _accumulate(direct, grads)
        rollouts = distinct(followers)
        for f in rollouts:
            c = coefficients[rollouts.index(f)] if coefficients else None
            g = leaf if f is rollouts[-1] else None
            if c is None and (g is None or not bool(g.any())):
                continue
            for rows in self.share.parts():
                here = self.share.here(rows)
                with self.roles.model("reward"), precision(self.config.dtype, self.processes.device):
                    r = self.roles.rewards(self.share.part(f.mine, rows)).to(f.reward.dtype)
                    # where the base is sharded, every process goes backward when one does
                    if g is not None and bool((g if self.processes.sharded else g[here]).any()):
                        both = (r * g[here]).sum()
                        _accumulate(direct, torch.autograd.grad(both, parameters, retain_graph=c is not None,
                                                                allow_unused=True))  # fmt: skip
                    if c is not None:
                        _accumulate(
                            penalty, torch.autograd.grad((r * c[here]).sum(), parameters, allow_unused=True)
                        )
        self.processes.add([*direct, *penalty])
        if self.config.x_penalty:
            for d, p in zip(direct, parameters, strict=True):
                d.add_(2 * self.config.x_penalty * p.detach())
        return direct, penalty

    def _judge(self, rollout: Rollout, pairs: Tensor) -> Tensor:
        """The pairs with the preferred completion first; unanswered ones are dropped."""
        answers = torch.full((len(pairs) + 1,), -1, dtype=torch.long)
        failure: Exception | None = None
        if self.processes.main:
            try:
                answers[:-1] = ask(self.judge, rollout, pairs)
                answers[-1] = 0
            except Exception as error:  # told to the other processes first, or they would wait for ever
                failure = error
        answers = self.processes.from_main(answers.to(self.processes.device)).cpu()
        if failure is not None:
            raise failure
        if int(answers[-1]) == -1:
            raise LabelsPending("the main process has no labels for this iteration")
        answers = answers[:-1]
        self.labels += len(pairs)
        kept = answers >= 0
        swapped = torch.where(answers[:, None] == 1, pairs.flip(1), pairs)
        return swapped[kept]

    def _drawn(
        self, pairs: list[setup.Pair], count: int, stream: int, k: int
    ) -> tuple[tuple[Rollout, Rollout] | None, int]:
        """A seeded draw of stored pairs: this process's share as two rollouts, and the number in all."""
        if not pairs or not count:
            return None, 0
        if self.processes.sharded and min(count, len(pairs)) < self.processes.count:
            return None, 0  # fewer than one a process: not all would call the model
        random = np.random.default_rng([self.config.seed, stream, k])
        chosen = random.choice(len(pairs), size=min(count, len(pairs)), replace=False)
        mine = [pairs[i] for i in chosen[self.processes.part(len(chosen))]]
        if not mine:
            return None, len(chosen)
        device = self.processes.device
        sides = ([(p, a) for p, a, _ in mine], [(p, b) for p, _, b in mine])
        first, second = (from_pairs(side, self.pad_id, device, self.tokenizer) for side in sides)
        return (first, second), len(chosen)


def check_sources(config: Config, objective: Any, judge: Any, gold: Any, stored: Sequence[Any]) -> None:
    """Raise `InvalidConfig` unless everything that the objective asks for is there."""
    for needs, have, name, what in (
        (objective.needs_pairs, judge is not None, "judge", "a pairwise judge"),
        (objective.needs_gold, gold is not None, "gold", "a gold scorer"),
        (objective.needs_stored, bool(stored), "preferences", "stored preference pairs"),
    ):
        if needs and not have:
            raise InvalidConfig(
                message(f"BilevelTrainer.{name}", "nothing", f"the upper objective needs {what}",
                        f"Pass {name}=, or choose another objective")
            )  # fmt: skip
    if config.method == "finite_difference" and objective.needs_stored:
        raise InvalidConfig(
            message("config.objective", "stored_preference with method=finite_difference",
                    "it does not depend on the policy", "Choose preference or gold")
        )  # fmt: skip


def _accumulate(into: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for total, grad in zip(into, grads, strict=True):
        if grad is not None:
            total.add_(grad)
