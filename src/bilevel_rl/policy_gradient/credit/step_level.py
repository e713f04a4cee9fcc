"""VL-DAC: a critic and GAE by environment step, the advantage copied to every token of the step."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.credit.gae import discounted_residuals, value_after, value_targets
from bilevel_rl.policy_gradient.credit.group_normalised import standardised
from bilevel_rl.policy_gradient.credit.sums import Credit
from bilevel_rl.policy_gradient.segments import Turns
from bilevel_rl.policy_gradient.setting import ONE_TURN, Setting


@dataclasses.dataclass(frozen=True)
class StepLevel(Credit):
    r"""GAE over environment steps (turns); each token of a step's action gets the step's advantage.

    $$A_u = \sum_i (\gamma\lambda)^i\left(r_{u+i} + \gamma V(s_{u+i+1}) - V(s_{u+i})\right), \qquad
    A_{u,t} = A_u$$

    The value of a step is read at its first action token. How an action is split into tokens does not matter.

    Args:
        gamma: discount a step.
        lam: as in GAE.
        normalise: mean 0 and standard deviation 1 over the action tokens, as the release does.

    References:
        Enhancing Vision-Language Model Training with Reinforcement Learning in Synthetic Worlds for
        Real-World Success. SEEN (public repository). Unbiased at lambda = 1 without normalisation. Cost:
        one scan over turns.
    """

    gamma: float = 0.99
    lam: float = 0.95
    normalise: bool = False

    card: ClassVar[Card] = Card(
        name="step_level",
        slot=Slot.CREDIT,
        effect=Effect.CHANGES,
        needs=("reward", "value", "turn"),
        scope=Scope.RESPONSE,
        source="Enhancing Vision-Language Model Training with RL in Synthetic Worlds (VL-DAC)",
        status=Status.SEEN,
        number=69,
        cost="O(NT), U sequential steps",
        note="unbiased at lambda = 1; normalise=True compares the whole batch",
    )

    def idle(self, setting: Setting) -> str:
        """Why it can't act, or nothing."""
        return ONE_TURN if setting.turns is False else ""

    def __call__(self, batch: Batch) -> Tensor:
        """[N, T] advantages."""
        (value,) = self.card.take(batch, "value")
        turns = Turns.of(batch)
        v = turns.at_first(value.detach())
        reward = turns.sum(batch.token_reward.to(v.dtype))
        out = turns.spread(
            discounted_residuals(reward, v, turns.valid, self.gamma, self.lam, value_after(batch, v.dtype))
        )
        return standardised(out, batch.mask, 1e-8) if self.normalise else out

    def value_targets(self, batch: Batch) -> Tensor:
        """[N, T]: this rule's advantage, as it is before it is normalised, plus the value."""
        raw = dataclasses.replace(self, normalise=False)
        return value_targets(batch.replace(advantage=raw(batch)))


def step_value_loss(batch: Batch, target: Tensor) -> Tensor:
    """Scalar: mean squared error of the value at each step's first action token; `target` is [N, T].

    Detach the hidden state that the value head reads if the policy's trunk shall not learn from it.
    """
    turns = Turns.of(batch)
    error = turns.at_first(batch.inside("value")) - turns.at_first(target).detach()
    return torch.where(turns.valid, error.square(), 0).sum() / turns.valid.sum().clamp(min=1)
