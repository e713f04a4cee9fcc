"""The leader's side of an iteration: labels asked for and kept, stored pairs drawn, f evaluated on a follower.

`Leader.ask` is one line of the algorithm: f and its gradients on the penalised follower's rows, with fresh labels while
the budget lasts.
"""

from __future__ import annotations

import dataclasses
import logging
import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.engine import REWARD, Engine
from bilevel_rl.levels.estimators import Ratios
from bilevel_rl.levels.followers import Scored, distinct
from bilevel_rl.levels.guards import check_finite
from bilevel_rl.levels.labels import Labels, LabelsPending, choose_pairs
from bilevel_rl.levels.objectives import Sample, Upper
from bilevel_rl.levels.pieces import Pieces
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.levels.settings import Settings

log = logging.getLogger(__name__)
STORED, REPLAY = 0x22, 0x23  # random streams, beside those of engines and `methods.finite_difference`
Gold = dict[str, Tensor]  # [N] gold scores of a follower's rows, by role


class Gradient(NamedTuple):
    """The hyper-gradient in its two parts, each one tensor a parameter of x, summed over processes.

    Attributes:
        direct: grad_x f.
        penalty: (1/w)(E_pi - E_pi^L)[grad_x r].
    """

    direct: list[Tensor]
    penalty: list[Tensor]

    @property
    def total(self) -> list[Tensor]:
        """Their sum."""
        return [a + b for a, b in zip(self.direct, self.penalty, strict=True)]


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the leader has learnt in an iteration.

    Attributes:
        upper: f and its gradients.
        sample: what f was evaluated on.
    """

    upper: Upper
    sample: Sample


def check_pairs(settings: Settings, objective: Any) -> None:
    """Raise `InvalidConfig` unless an iteration's rows hold the pairs that are to be judged.

    Example:
        >>> from bilevel_rl.levels.objectives import Preference
        >>> check_pairs(Settings(pairs_per_step=8, batch=16, group=4), Preference())
    """
    if not objective.needs_pairs:
        return
    if 2 * settings.pairs_per_step > settings.batch:
        raise InvalidConfig(
            message("config.pairs_per_step", settings.pairs_per_step,
                    f"a batch of {settings.batch} completions has at most {settings.batch // 2} disjoint pairs",
                    "Lower pairs_per_step, or raise prompts_per_step or group")
        )  # fmt: skip
    if settings.group < 2:
        raise InvalidConfig(
            message("config.group", settings.group, "a pair is two completions of one prompt", "Set group to 2 or more")
        )


def check_fits(settings: Settings, objective: Any) -> None:
    """Raise `InvalidConfig` where x learns from grad_x f alone and f has none: x would stand still without a word."""
    terms = [term for _, term in getattr(objective, "terms", ((1.0, objective),))]
    if not any(getattr(term, "fits", True) for term in terms):
        raise InvalidConfig(
            message("config.objective", f"{' and '.join(type(t).__name__ for t in terms)} alone with "
                    f"method={settings.method}", "x has no direct gradient there: nothing would fit the reward model",
                    "Use objective=label_likelihood or stored_preference")
        )  # fmt: skip


class Leader:
    """What the upper level knows, and how it learns more.

    Args:
        settings: budgets, seed.
        engine: whose rewards are x.
        processes, share: who computes which rows.
        objective: f.
        labels: whom to ask.
        keeps: whether labelled pairs are used again, whatever `replay_pairs` says.

    Attributes:
        count: labels asked for so far.
        replay: pairs labelled so far, where they are used again.
    """

    def __init__(
        self, settings: Settings, engine: Engine, processes: Processes, share: Share, objective: Any, labels: Labels,
        keeps: bool = False,
    ) -> None:  # fmt: skip
        self.settings, self.engine, self.processes, self.share = settings, engine, processes, share
        self.objective, self.labels, self.keeps = objective, labels, keeps
        self.count = 0
        self._early: Future[Tensor] | None = None
        self.replay: list[Any] = []

    @property
    def parameters(self) -> list[torch.nn.Parameter]:
        """x."""
        return list(self.engine.parameters(REWARD).values())

    @property
    def pieces(self) -> Pieces:
        """Where x is."""
        return self.engine.pieces

    def foretell(self) -> None:
        """Say before the run when its labels will be spent."""
        settings = self.settings
        each = settings.pairs_per_step if self.objective.needs_pairs else 0
        each = settings.batch if self.objective.needs_gold else each
        last = settings.label_budget // each if each else settings.steps
        if settings.label_budget and last < settings.steps:
            then = f"x is fitted on {settings.replay_pairs} replayed pairs" if settings.replay_pairs else "x stands still"
            log.warning(
                "%d labels at %d an iteration last for %d of %d iterations; then %s: ask for fewer an iteration, or raise "
                "the budget of labels", settings.label_budget, each, last, settings.steps, then,
            )  # fmt: skip

    def fresh_labels(self) -> int:
        """How many pairs (or gold scores) may still be asked for in this iteration."""
        settings, left = self.settings, math.inf
        if settings.label_budget:
            left = settings.label_budget - self.count
        if self.objective.needs_gold:
            return settings.batch if left >= settings.batch else 0
        return int(min(settings.pairs_per_step, left)) if self.objective.needs_pairs else 0

    def ask(self, f: Scored, ratios: Ratios | None, gold: Gold, k: int) -> Answer | None:
        """f and its gradients on a follower's rows, with fresh labels while the budget lasts.

        None when the labels are spent and nothing else tells of f: x stays where it is.
        """
        fresh = self.fresh_labels()
        known = self.replay or self.objective.needs_stored
        if not fresh and (self.objective.needs_gold or (self.objective.needs_pairs and not known)):
            return None
        pairs = torch.empty(0, 2, dtype=torch.long)
        if self.objective.needs_pairs:
            contents = self.labels.contents(f.rows)
            pairs = self._judge(f.rows, choose_pairs(f.rows.group, fresh, self.settings.seed, k, contents))
        if self.objective.needs_gold:
            self.count += f.rows.size
        cost = self._costs(f)
        sample = self.evidence(f.rows, f.reward, ratios, gold.get(f.role), pairs, k, cost)
        upper = self.evaluate(sample, k)
        if self.settings.replay_pairs or self.keeps:
            self.replay += self.labels.kept(f.rows, pairs)
        return Answer(upper, sample)

    def begin(self, f: Scored, k: int) -> None:
        """Ask for this iteration's labels now, where this process asks; `ask` waits for them."""
        if not self.processes.main:
            return
        fresh = self.fresh_labels()
        pairs = choose_pairs(f.rows.group, fresh, self.settings.seed, k, self.labels.contents(f.rows))
        pool = ThreadPoolExecutor(1)
        self._early = pool.submit(self.labels.answers, f.rows, pairs)
        pool.shutdown(wait=False)

    def _answers(self, rows: Any, pairs: Tensor) -> Tensor:
        early, self._early = self._early, None
        if early is None:
            return self.labels.answers(rows, pairs)
        try:
            return early.result()
        except LabelsPending as pending:  # theta may have moved meanwhile: the iteration can't be taken back
            raise InvalidConfig(
                message(type(self.labels).__name__, f"no answers yet ({pending}), with overlaps = True",
                        "who is asked while the policy learns has answers when asked", "Leave it out")
            ) from pending  # fmt: skip

    def gold_scores(self, followers: Sequence[Scored]) -> Gold:
        """Gold scores of each follower's rows, by role; a label each when f is made of them."""
        found: Gold = {}
        for f in followers:
            same = [g.role for g in followers if g.rows is f.rows and g.role in found]
            if same:
                found[f.role] = found[same[0]]
                continue
            mine = self.labels.gold(f.mine)
            if mine is None:
                return {}
            found[f.role] = self.processes.gather(mine.to(f.logp))
        return found

    def _costs(self, f: Scored) -> Tensor | None:
        """[N] the second judge's costs, a label each, while labels last."""
        budget = self.settings.label_budget
        if not getattr(self.objective, "needs_cost", False) or (budget and budget - self.count < f.rows.size):
            return None
        mine = self.labels.cost(f.mine)
        if mine is None:
            return None
        self.count += f.rows.size
        return self.processes.gather(mine.to(f.logp))

    def evidence(
        self, rows: Any, reward: Tensor, ratios: Ratios | None, gold: Tensor | None, pairs: Tensor, k: int,
        cost: Tensor | None = None,
    ) -> Sample:  # fmt: skip
        """What the objective may look at: the batch, its judged pairs, and seeded draws of what is stored."""
        settings = self.settings
        weights = torch.ones_like(reward) if ratios is None else ratios.sequence
        again = settings.replay_pairs or (2 * settings.pairs_per_step if self.keeps else 0)
        known = self.labels.stored if self.objective.needs_stored else []
        stored, stored_total = self._drawn(known, settings.pairs_per_step, STORED, k)
        replayed, replayed_total = self._drawn(self.replay, again, REPLAY, k)
        return Sample(
            rows, reward.clone().requires_grad_(), weights, gold, pairs.to(reward.device), self.engine.rewards,
            stored, stored_total, replayed, replayed_total, k, cost,
        )  # fmt: skip

    def evaluate(self, sample: Sample, k: int) -> Upper:
        """The objective's answer, its value summed over processes.

        Raises:
            NonFiniteState: a bonus or a loss that is NaN or infinite.
        """
        with self.engine.acting(REWARD):
            upper: Upper = self.objective.evaluate(sample)
        if self.processes.count > 1:
            share = torch.tensor([upper.share], dtype=torch.float64, device=self.processes.device)
            self.processes.add([share])
            upper.share = float(share)
        upper.value, upper.share = upper.value + upper.share, 0.0
        check_finite("upper objective's bonus", upper.total, k)
        if upper.loss is not None:
            check_finite("upper objective", upper.loss, k)
        return upper

    def stored_alone(self, k: int) -> tuple[Upper, Gradient | None]:
        """f and its gradient on the pairs there are, without rows: what fits x once the labels are spent."""
        parameters = self.parameters
        nothing = torch.zeros(0, device=self.processes.device, dtype=parameters[0].dtype)
        none = torch.empty(0, 2, dtype=torch.long)
        upper = self.evaluate(self.evidence(None, nothing, None, None, none, k), k)
        if upper.loss is None:
            return upper, None
        direct = [torch.zeros_like(p) for p in parameters]
        with self.engine.acting(REWARD):
            _accumulate(direct, self.pieces.gradients(upper.loss, parameters))
        self.pieces.add(self.processes, parameters, direct)
        self._shrink(direct)
        return upper, Gradient(direct, [torch.zeros_like(d) for d in direct])

    def hyper_gradient(
        self, followers: Sequence[Scored], coefficients: Sequence[Tensor] | None, answer: Answer
    ) -> Gradient:
        """grad_x f and sum_i c_i grad_x r_i.

        Args:
            followers: scored.
            coefficients: [N] for each distinct batch of rows; None: no penalty.
            answer: f on the last follower's rows.
        """
        parameters = self.parameters
        direct = [torch.zeros_like(p) for p in parameters]
        penalty = [torch.zeros_like(p) for p in parameters]
        leaf = None
        loss = answer.upper.loss
        if loss is not None and loss.requires_grad:
            with self.engine.acting(REWARD):
                leaf, *grads = self.pieces.gradients(loss, [answer.sample.rewards, *parameters])
            _accumulate(direct, grads)
        batches = distinct(followers)
        for f, c in zip(batches, coefficients or [None] * len(batches), strict=True):
            g = leaf if f is batches[-1] else None
            if c is not None or (g is not None and bool(g.any())):
                self._through_rewards(f, g, c, direct, penalty)
        self.pieces.add(self.processes, [*parameters, *parameters], [*direct, *penalty])
        self._shrink(direct)
        return Gradient(direct, penalty)

    def _through_rewards(
        self, f: Scored, g: Tensor | None, c: Tensor | None, direct: list[Tensor], penalty: list[Tensor]
    ) -> None:
        """Add the gradients of sum g_i r_i and of sum c_i r_i over this process's rows."""
        parameters, gradients = self.parameters, self.pieces.gradients
        for rows in self.share.parts():
            here = self.share.here(rows)
            with self.engine.acting(REWARD):
                r = self.engine.rewards(self.share.part(f.mine, rows)).to(f.reward.dtype)
                # where weights are in pieces, every process goes backward when one does
                if g is not None and bool((g if self.processes.sharded else g[here]).any()):
                    _accumulate(direct, gradients((r * g[here]).sum(), parameters, retain_graph=c is not None))
                if c is not None:
                    _accumulate(penalty, gradients((r * c[here]).sum(), parameters))

    def _shrink(self, direct: list[Tensor]) -> None:
        """Add the gradient of lambda |x|^2."""
        if self.settings.x_penalty:
            for d, p in zip(direct, self.parameters, strict=True):
                d.add_(2 * self.settings.x_penalty * p.detach())

    def _judge(self, rows: Any, pairs: Tensor) -> Tensor:
        """The pairs with the preferred row first; unanswered ones are dropped."""
        answers = torch.full((len(pairs) + 1,), -1, dtype=torch.long)
        failure: Exception | None = None
        if self.processes.main:
            try:
                answers[:-1] = self._answers(rows, pairs)
                answers[-1] = 0
            except Exception as error:  # told to the other processes first, or they would wait for ever
                failure = error
        answers = self.processes.from_main(answers.to(self.processes.device)).cpu()
        if failure is not None:
            raise failure
        if int(answers[-1]) == -1:
            raise LabelsPending("the main process has no labels for this iteration")
        answers = answers[:-1]
        self.count += len(pairs)
        kept = answers >= 0
        swapped = torch.where(answers[:, None] == 1, pairs.flip(1), pairs)
        return swapped[kept]

    def _drawn(
        self, pairs: Sequence[Any], count: int, stream: int, k: int
    ) -> tuple[tuple[Any, Any] | None, int]:
        """A seeded draw of kept pairs: this process's share as two batches of rows, and the number in all."""
        if not pairs or not count:
            return None, 0
        if self.processes.sharded and min(count, len(pairs)) < self.processes.count:
            return None, 0  # fewer than one a process: not all would call the model
        random = np.random.default_rng([self.settings.seed, stream, k])
        chosen = random.choice(len(pairs), size=min(count, len(pairs)), replace=False)
        mine = [pairs[i] for i in chosen[self.processes.part(len(chosen))]]
        return (self.labels.rows(mine) if mine else None), len(chosen)


def check_sources(objective: Any, pairs: bool, gold: bool, stored: bool, cost: bool = False) -> None:
    """Raise `InvalidConfig` unless everything that the objective asks for is there, and stored pairs are not for nothing."""
    if stored and not objective.needs_stored:
        raise InvalidConfig(
            message("BilevelTrainer.preferences", "stored preferences", "the upper objective reads none",
                    "Write objective: {stored_preference: 1.0}, beside others or alone, or leave preferences out")
        )  # fmt: skip
    for needs, have, name, what in (
        (objective.needs_pairs, pairs, "judge", "a pairwise judge"),
        (objective.needs_gold, gold, "gold", "a gold scorer"),
        (objective.needs_stored, stored, "preferences", "stored preference pairs"),
        (getattr(objective, "needs_cost", False), cost, "cost", "a scorer of costs"),
    ):
        if needs and not have:
            raise InvalidConfig(
                message(f"BilevelTrainer.{name}", "nothing", f"the upper objective needs {what}",
                        f"Pass {name}=, or choose another objective")
            )  # fmt: skip


def _accumulate(into: Sequence[Tensor], grads: Sequence[Tensor | None]) -> None:
    for total, grad in zip(into, grads, strict=True):
        if grad is not None:
            total.add_(grad)
