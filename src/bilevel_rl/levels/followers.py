"""The followers of an iteration: theta and theta^L as values of the same records, scored by one function.

    Drawn    which rows a policy learns from, and which of them are this process's
    Scored   what rewards, policies and reference say of them
    Prepared    the prepared batch of a recipe (see `learner`)

Each record is made whole by one phase and read by the next.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.engine import Engine, Scores
from bilevel_rl.levels.estimators import sampled_kl
from bilevel_rl.levels.guards import check_finite
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.levels.settings import Settings
from bilevel_rl.policy_gradient.batch import Batch

Facing = Callable[[str], contextlib.AbstractContextManager[Any]]  # at which x a role is rewarded


@dataclasses.dataclass(frozen=True)
class Drawn:
    """Rows that a policy learns from.

    Attributes:
        role, critic: names of its roles; `critic` is "" without critics.
        rows: of all processes.
        mine: of this process.
    """

    role: str
    critic: str
    rows: Any
    mine: Any


@dataclasses.dataclass(frozen=True)
class Scored:
    """A follower's rows, scored. Tensors of the whole batch are [N] or [N, T], without a graph.

    Attributes:
        drawn: the rows.
        own: scores of this process's rows, with a graph when one pass does all.
        own_values: values likewise; None without a critic.
        logp, reference, kl, entropy: [N, T], in nats.
        cost: [N, T] tau times the regulariser at each action.
        values: [N, T] of the critic, or None.
        reward: [N] r_x.
        terms: [N, K] reward terms whose sum is the reward, where the engine has them.
    """

    drawn: Drawn
    own: Scores
    own_values: Tensor | None
    logp: Tensor
    reference: Tensor
    kl: Tensor
    entropy: Tensor
    cost: Tensor
    values: Tensor | None
    reward: Tensor
    terms: Tensor | None

    @property
    def role(self) -> str:
        """Of the policy."""
        return self.drawn.role

    @property
    def critic(self) -> str:
        """Of its critic, or ""."""
        return self.drawn.critic

    @property
    def rows(self) -> Any:
        """Of all processes."""
        return self.drawn.rows

    @property
    def mine(self) -> Any:
        """Of this process."""
        return self.drawn.mine


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A follower's prepared batch.

    Attributes:
        scored: where it comes from.
        batch: with advantages and weights.
        rows: its rows; None: they are `scored.rows`, in order.
        rho: [n, T] importance of the rows for this follower; None: they are its own.
        targets, known: [n, T] what the critic regresses on, and where; None without a critic.
    """

    scored: Scored
    batch: Batch
    rows: Any | None
    rho: Tensor | None
    targets: Tensor | None
    known: Tensor | None


def distinct(followers: Sequence[Scored]) -> list[Scored]:
    """The followers with rows of their own; those that share them count once."""
    return [f for i, f in enumerate(followers) if all(f.rows is not g.rows for g in followers[:i])]


class Lower:
    """Scores of the lower level.

    Args:
        settings: the regulariser.
        engine: whose policies and rewards.
        processes, share: who computes which rows.
    """

    def __init__(self, settings: Settings, engine: Engine, processes: Processes, share: Share) -> None:
        self.settings, self.engine, self.processes, self.share = settings, engine, processes, share

    def score(self, drawn: Sequence[Drawn], tau: float, graph: bool, facing: Facing, k: int) -> list[Scored]:
        """Rewards, log-probabilities, exact KL, entropy and values of each follower on its rows.

        Args:
            drawn: theta, and theta^L where there is one.
            tau: weight of the regulariser.
            graph: keep the graph, for learning.
            facing: at which x a role is rewarded.
            k: iteration.
        """
        own: dict[str, list[tuple[Scores, Tensor | None]]] = {d.role: [] for d in drawn}
        with torch.set_grad_enabled(graph):
            for rows in self.share.parts():
                for together in _same_rows(drawn):
                    part = self.share.part(together[0].mine, rows)
                    scores = self.engine.scores([d.role for d in together], part)
                    for d, found in zip(together, scores, strict=True):
                        values = self.engine.values(d.critic, part) if d.critic else None
                        own[d.role].append((found, values))
        paid = self._rewards(drawn, own, facing)
        scored = [
            self._whole(d, own[d.role], tau, *pay) for d, pay in zip(drawn, paid, strict=True)
        ]
        for f in scored:
            check_finite("reward", f.reward, k)
            check_finite("log-probability", f.logp, k)
        return scored

    def _whole(
        self, d: Drawn, pieces: list[tuple[Scores, Tensor | None]], tau: float, reward: Tensor, terms: Tensor | None
    ) -> Scored:  # fmt: skip
        own = Scores(*(torch.cat([scores[i] for scores, _ in pieces]) for i in range(4)))
        gather = self.processes.gather
        logp, kl, entropy = (gather(v.detach()) for v in own[:3])
        reference = gather(own.reference)
        known = [values for _, values in pieces if values is not None]
        own_values = torch.cat(known) if known else None
        values = None if own_values is None else gather(own_values.detach())
        cost = tau * self.regularizer(logp, kl, entropy, reference)
        return Scored(d, own, own_values, logp, reference, kl, entropy, cost, values, reward, terms)

    @torch.no_grad()
    def _rewards(
        self, drawn: Sequence[Drawn], own: dict[str, list[tuple[Scores, Tensor | None]]], facing: Facing
    ) -> list[tuple[Tensor, Tensor | None]]:
        """Of each follower, (reward [N], terms [N, K] or None); rows that two share are paid once."""
        found: list[tuple[Tensor, Tensor | None]] = []
        for i, d in enumerate(drawn):
            same = [j for j, other in enumerate(drawn[:i]) if other.rows is d.rows]
            if same:
                found.append(found[same[0]])
                continue
            dtype = own[d.role][0][0].logp.dtype
            with facing(d.role):
                terms = self.engine.terms(d.mine)
                if terms is not None:
                    terms = self.processes.gather(terms.to(dtype))
                    found.append((terms.sum(1), terms))
                    continue
                parts = [self.engine.rewards(self.share.part(d.mine, rows)) for rows in self.share.parts()]
            found.append((self.processes.gather(torch.cat(parts).to(dtype)), None))
        return found

    @torch.no_grad()
    def look(self, d: Drawn) -> Scored:
        """Score rows that no policy of this run has written; every process scores all of them."""
        scores = self.engine.score(d.role, d.rows)
        values = self.engine.values(d.critic, d.rows) * d.rows.mask if d.critic else None
        terms = self.engine.terms(d.rows)
        terms = None if terms is None else terms.to(scores.logp)
        reward = self.engine.rewards(d.rows).to(scores.logp) if terms is None else terms.sum(1)
        zero = torch.zeros_like(scores.logp)
        return Scored(
            d, scores, values, scores.logp, scores.reference, scores.kl, scores.entropy, zero, values, reward, terms
        )  # fmt: skip

    def regularizer(self, logp: Tensor, kl: Tensor, entropy: Tensor, reference: Tensor) -> Tensor:
        """[N, T] the regulariser at each action; k3 enters the loss directly and costs nothing here."""
        kind = self.settings.kl_estimator
        if self.settings.regularizer == "entropy":
            return -entropy if kind == "exact" else logp
        if kind == "exact":
            return kl
        return torch.zeros_like(kl) if kind == "k3" else sampled_kl(logp, reference, "k1")

    def differentiable(self, logp: Tensor, kl: Tensor, entropy: Tensor, reference: Tensor) -> Tensor | None:
        """The regulariser with a graph, for the kinds whose gradient at each visited state is known."""
        if self.settings.kl_estimator == "exact":
            return kl if self.settings.regularizer == "kl" else -entropy
        if self.settings.kl_estimator == "k3":
            return sampled_kl(logp, reference, "k3")
        return None


def check_regularizer(settings: Settings) -> None:
    """Raise `InvalidConfig` unless the regulariser has the estimator asked for."""
    if settings.regularizer == "entropy" and settings.kl_estimator == "k3":
        raise InvalidConfig(
            message("config.kl_estimator", "k3 with regularizer=entropy", "k3 estimates a KL, not an entropy",
                    "Choose exact or k1")
        )  # fmt: skip


def _same_rows(drawn: Sequence[Drawn]) -> list[list[Drawn]]:
    """Followers that learn from one batch together, in order."""
    found: list[list[Drawn]] = []
    for d in drawn:
        if found and found[-1][0].mine is d.mine:
            found[-1].append(d)
        else:
            found.append([d])
    return found
