"""T-PPO's extended GAE: advantages of responses that are not finished yet."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.gae import discounted_residuals, value_targets
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.setting import Setting


@dataclasses.dataclass(frozen=True)
class TruncatedGAE(Credit):
    r"""GAE where the unknown value after the last token of a cut response is taken equal to the last known
    one.

    $$\delta_t = r_t + \gamma V(s_{t+1}) - V(s_t), \qquad V(s_l) := V(s_{l-1}) \text{ for a response cut
    after } l \text{ tokens}$$

    so that at $\gamma = 1$ the last residual is the reward alone (0). Finished responses: GAE exactly.

    Args:
        gamma: discount a token.
        lam: as in GAE.

    References:
        Truncated Proximal Policy Optimization (T-PPO). In the spirit of: the formula is INFERRED from the
        abstract. Train the critic with `finished_only` as its mask. Cost: one backward scan over T.
    """

    gamma: float = 1.0
    lam: float = 0.95

    card: ClassVar[Card] = Card(
        name="truncated_gae",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "value"),
        scope=Scope.RESPONSE,
        source="Truncated Proximal Policy Optimization",
        status=Status.INFERRED,
        number=46,
        cost="O(NT), T sequential steps",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return (
            "no response is cut, and on whole ones it is gae. Choose gae"
            if setting.truncates is False
            else ""
        )

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (value,) = self.card.take(batch, "value")
        value = value.detach()
        last = last_inside(value, batch.mask)
        final = torch.where(batch.truncated, last, 0)
        return discounted_residuals(
            batch.token_reward.to(value.dtype), value, batch.mask, self.gamma, self.lam, final
        )

    def value_targets(self, batch: Batch) -> Tensor:
        """[N, T]: this rule's advantage, as it is before anything scales it, plus the value."""
        return value_targets(batch.replace(advantage=self(batch)))


def last_inside(values: Tensor, mask: Tensor) -> Tensor:
    """[N]: the value at the last action token of each row; 0 for an empty row."""
    if not mask.shape[1]:
        return values.new_zeros(len(values))
    position = torch.where(mask, torch.arange(mask.shape[1], device=mask.device), -1).amax(1)
    return torch.where(position >= 0, values.gather(1, position.clamp(min=0)[:, None])[:, 0], 0)


def finished_only(batch: Batch) -> Tensor:
    """[N, T] mask for the critic's loss: action tokens of responses that are not cut (their returns are
    known).
    """
    return batch.mask & ~batch.truncated[:, None]
