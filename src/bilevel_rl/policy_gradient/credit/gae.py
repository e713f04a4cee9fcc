"""Generalised advantage estimation, and the value targets that go with it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.sums import Credit


def discounted_residuals(
    reward: Tensor, value: Tensor, mask: Tensor, gamma: float, lam: float, final: Tensor | None = None
) -> Tensor:
    r"""The GAE recursion on the action tokens, skipping whatever lies between them.

    $$\delta_t = r_t + \gamma V_{t^+} - V_t, \qquad A_t = \delta_t + \gamma\lambda A_{t^+},$$
    with $t^+$ the next action token of the same response.

    Args:
        reward: [N, T], in units of reward.
        value: [N, T], value of the state before each token.
        mask: [N, T] bool.
        gamma: discount a token.
        lam: $\lambda \in [0, 1]$.
        final: [N], value of the state after the last action token (0 when missing: the episode has ended).

    Returns:
        [N, T] advantages, 0 outside the mask.

    Example:
        >>> r, v = torch.tensor([[0.0, 1.0]]), torch.tensor([[0.5, 0.5]])
        >>> discounted_residuals(r, v, torch.ones(1, 2, dtype=torch.bool), gamma=1.0, lam=1.0)
        tensor([[0.5000, 0.5000]])
    """
    n, t = mask.shape
    advantage, follow = value.new_zeros(n), value.new_zeros(n) if final is None else final.to(value.dtype)
    columns = []
    for k in reversed(range(t)):
        here = mask[:, k]
        delta = reward[:, k] + gamma * follow - value[:, k]
        advantage = torch.where(here, delta + gamma * lam * advantage, advantage)
        follow = torch.where(here, value[:, k], follow)
        columns.append(torch.where(here, advantage, 0))
    return torch.stack(columns[::-1], 1) if columns else torch.zeros_like(value)


@dataclasses.dataclass(frozen=True)
class GAE(Credit):
    r"""Generalised advantage estimation with a token-level critic.

    $$A_t = \sum_{i \ge 0} (\gamma\lambda)^i \left(r_{t+i} + \gamma V(s_{t+i+1}) - V(s_{t+i})\right)$$

    A response cut by a limit is bootstrapped only when the batch has the extra `final_value` [N]; otherwise
    the limit is part of the task and the episode ends there.

    Args:
        gamma: discount a token; 1 for language.
        lam: 1 is the Monte-Carlo return minus the value (unbiased), 0 the one-step residual.

    References:
        Schulman et al., High-Dimensional Continuous Control Using Generalized Advantage Estimation, arXiv
        1506.02438, equation 16. Classical. Cost: one backward scan over T.
    """

    gamma: float = 1.0
    lam: float = 0.95

    card: ClassVar[Card] = Card(
        name="gae",
        scope=Scope.RESPONSE,
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "value"),
        source="High-Dimensional Continuous Control Using Generalized Advantage Estimation, arXiv 1506.02438",
        status=Status.CLASSICAL,
        cost="O(NT), T sequential steps",
        cite=("schulman2016gae",),
        note="unbiased (keeps the objective) at lam = 1, or with the true value function; otherwise "
        "biased by the critic",
    )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (value,) = self.card.take(batch, "value")
        value = value.detach()
        return discounted_residuals(
            batch.token_reward.to(value.dtype),
            value,
            batch.mask,
            self.gamma,
            self.lam,
            value_after(batch, value.dtype),
        )

    def value_targets(self, batch: Batch) -> Tensor:
        """[N, T]: this rule's advantage, as it is before anything scales it, plus the value."""
        return value_targets(batch.replace(advantage=self(batch)))


def value_after(batch: Batch, dtype: torch.dtype) -> Tensor | None:
    """[N]: the extra `final_value` where a response was cut, 0 where it ended; None without the extra."""
    final = batch.extras.get("final_value")
    return None if final is None else torch.where(batch.truncated, final.detach().to(dtype), 0)


def value_targets(batch: Batch) -> Tensor:
    """[N, T]: advantage + value, what the critic regresses on; 0 outside the mask."""
    return batch.inside("advantage") + batch.inside("value").detach()


def returns_to_go(batch: Batch, gamma: float = 1.0) -> Tensor:
    """[N, T]: discounted sum of rewards from each action token on (GAE with zero values and lam = 1)."""
    reward = batch.token_reward
    return discounted_residuals(reward, torch.zeros_like(reward), batch.mask, gamma, 1.0)
