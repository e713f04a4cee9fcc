"""Reward models x: a module that maps a rollout to one number a completion, differentiable in its parameters."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm.data.wording import whole
from bilevel_rl.llm.forward import arguments, context
from bilevel_rl.llm.loading import classifier_rows, pad_rows
from bilevel_rl.llm.rewards.functions import call_reward_function
from bilevel_rl.llm.sampling.rollout import Rollout


class WeightedRewards(nn.Module):
    r"""$r_x(p, y) = \sum_j x_j \, r_j(p, y)$: weights of several reward functions are the upper variable.

    Args:
        functions: TRL reward functions: `f(prompts, completions, completion_ids, **columns) -> list of float`, None for
            a completion to which it does not apply.
        x0: [len(functions)] initial weights.

    Attributes:
        state: transformers' `TrainerState`, for functions that take `trainer_state`; the trainer sets it.

    Raises:
        InvalidProblem: when a function returns the wrong length or a value that is not finite (on call).

    Example:
        >>> def length(completions, **_):
        ...     return [float(len(c)) for c in completions]
        >>> WeightedRewards([length], [0.5]).x
        Parameter containing:
        tensor([0.5000], requires_grad=True)
    """

    def __init__(self, functions: Sequence[Callable], x0: Sequence[float]) -> None:
        super().__init__()
        if len(functions) != len(x0) or not functions:
            raise InvalidConfig(
                message("WeightedRewards.x0", f"{len(x0)} weights for {len(functions)} functions",
                        "one weight for each reward function", "Give as many weights as functions")
            )  # fmt: skip
        self.functions, self.state = list(functions), None
        self.x = nn.Parameter(torch.as_tensor(x0, dtype=torch.get_default_dtype()))

    def features(self, rollout: Rollout) -> Tensor:
        """[N, K] value of each reward function on each completion; 0 where one does not apply (None)."""
        columns = [call_reward_function(f, rollout, state=self.state, absent=True) for f in self.functions]
        return torch.stack(columns, 1).nan_to_num(nan=0.0).to(self.x)

    def terms(self, rollout: Rollout) -> Tensor:
        """[N, K] weighted values, whose sum is the reward: the reward terms of a recipe."""
        return self.features(rollout) * self.x

    def forward(self, rollout: Rollout) -> Tensor:
        """[N] rewards."""
        return self.features(rollout) @ self.x


class GatedRewards(WeightedRewards):
    r"""HPT's gate as part of x: where the policy fails it learns from demonstrations, elsewhere from its reward.

    $r(p, y) = \sum_j r_j(p, y)$, and with s the share of a prompt's completions that are right,

    $$\text{weight of completions } \sigma\big((s - \gamma)/h\big), \qquad
      \text{weight of the demonstration } 1 - \sigma\big((s - \gamma)/h\big)$$

    x is the gate $\gamma$ alone: small is reinforcement learning, large is imitation. The rewards do not depend on it and
    demonstrations are no reward, so its hyper-gradient comes from `method: finite_difference`, with the recipe
    `Recipe(credit=Gate(mix=reward.mix), loss=Unified(denominator=itself_on_demonstrations))`.

    Args:
        functions: as for `WeightedRewards`.
        gate: $\gamma$ at the start.
        width: h.

    Example:
        >>> gated = GatedRewards([lambda completions, **_: [0.0 for _ in completions]], gate=0.5, width=0.25)
        >>> [[round(w, 2) for w in side.tolist()] for side in gated.mix(torch.tensor([0.0, 0.5, 1.0]))]
        [[0.12, 0.5, 0.88], [0.88, 0.5, 0.12]]
    """

    def __init__(self, functions: Sequence[Callable], gate: float, width: float = 0.2) -> None:
        super().__init__(functions, [1.0] * len(functions))
        self.x.requires_grad_(False)
        self.gate = nn.Parameter(torch.tensor([gate], dtype=torch.get_default_dtype()))
        self.width = width

    def mix(self, solved: Tensor) -> tuple[Tensor, Tensor]:
        """Weights [N] of completions and of demonstrations, from the share [N] that is right."""
        on = torch.sigmoid((solved - self.gate.detach()[0]) / self.width)
        return on, 1 - on


class LinearReward(nn.Module):
    r"""$r_x(p, y) = x^\top \phi(p, y)$ on features that do not train.

    Args:
        features: maps a rollout to [N, d]; no gradient flows into it.
        dim: d.
        of_reference: the features are the reference's hidden state at the last token: it has a class in transformers.
    """

    def __init__(self, features: Callable[[Rollout], Tensor], dim: int, of_reference: bool = False) -> None:
        super().__init__()
        self.features, self.of_reference = features, of_reference
        self.x = nn.Parameter(torch.zeros(dim))

    def forward(self, rollout: Rollout) -> Tensor:
        """[N] rewards."""
        with torch.no_grad():
            features = self.features(rollout)
        return features.to(self.x) @ self.x


class ClassifierReward(nn.Module):
    """A sequence classifier with one label: a decoder's (`score` head, read at the last real token) or an encoder's.

    A row's reward is the same alone and in any batch: models that count positions from the first column, or take no
    positions, get their rows without padding in front.

    Args:
        model: an `AutoModelForSequenceClassification` with one label.
        tokenizer: of `model`, where the policy writes with another one: the reward then reads the *text* (its own chat
            template for conversations, the beginning cut where it does not fit). None: both share their ids.

    Raises:
        InvalidConfig: more than one label.
    """

    def __init__(self, model: nn.Module, tokenizer: Any = None) -> None:
        super().__init__()
        if getattr(model.config, "num_labels", 1) != 1:
            raise InvalidConfig(
                message("reward", f"a classifier with {model.config.num_labels} labels",
                        "a reward model has one output", "Load it with num_labels=1")
            )  # fmt: skip
        self.model, self.tokenizer = model, tokenizer

    def forward(self, rollout: Rollout) -> Tensor:
        """[N] rewards."""
        head = getattr(self.model, "score", None)
        body = self.model.base_model
        if self.tokenizer is None and head is not None and "position_ids" in arguments(body):
            hidden = body(
                input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=rollout.positions,
                use_cache=False,
            ).last_hidden_state  # fmt: skip
            return _read(head, hidden, rollout.last)
        ids, attention = self._rows(rollout)
        if head is None:
            return self.model(input_ids=ids, attention_mask=attention).logits[:, 0]
        return _read(
            head, body(input_ids=ids, attention_mask=attention).last_hidden_state, attention.sum(1) - 1
        )

    def _rows(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Ids [N, W] and attention, real tokens first."""
        pad = self.model.config.pad_token_id
        pad = 0 if pad is None else pad
        if self.tokenizer is None:
            return rollout.packed(pad)
        texts = [
            whole(p.text, y, self.tokenizer) for p, y in zip(rollout.prompts, rollout.texts, strict=True)
        ]
        ids, attention = pad_rows(
            classifier_rows(self.tokenizer, texts, context(self.model), begin=False), pad
        )
        return ids.to(rollout.ids.device), attention.to(rollout.ids.device)


def _read(head: nn.Module, hidden: Tensor, last: Tensor) -> Tensor:
    """[N] score of the hidden states [N, W, H] at the last real token, at least 32-bit."""
    score = head(hidden[torch.arange(len(hidden), device=hidden.device), last])[:, 0]
    return score.float() if score.dtype == torch.bfloat16 else score
