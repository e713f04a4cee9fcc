"""A value model of starts: which reward the policy will get, read from what the reference makes of the prompt."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.segments import label, segment_mean, segment_size


@dataclasses.dataclass(frozen=True)
class PromptModel:
    r"""Ridge regression of a start's mean reward on its features, updated with every batch; it also knows unseen starts.

    $$V(q) = p_0 + \phi(q)^\top(G + \lambda I)^{-1} m, \qquad G \leftarrow \gamma G + \sum_q n_q\phi\phi^\top,\quad
      m \leftarrow \gamma m + \sum_q n_q\phi\,(\bar r_q - p_0)$$

    $\phi$ are the features of `start_features` (a frozen model's last hidden state), projected at random to `size` numbers,
    and a 1. An option of `choose_nearest` and `spread_budget`: `choose_nearest(value=prompt_model)`.

    Args:
        size: of the projection.
        ridge: $\lambda$, in rows.
        memory: $\gamma$, share of the past that is kept, since the policy moves.
        prior: $p_0$, value before anything is known.

    References:
        Prompt Curriculum Learning for Efficient LLM Post-Training, and V0, arXiv 2602.03584: a value model of prompts is
        SEEN (paper notes); theirs are language models, this regression is ours: INFERRED.
    """

    size: int = 32
    ridge: float = 4.0
    memory: float = 0.97
    prior: float = 0.5

    card: ClassVar[Card] = Card(
        name="prompt_model",
        slot=Slot.ROLLOUT,
        by_prompt=True,
        effect=Effect.RESCALES,
        needs=("start_features", "reward", "group"),
        scope=Scope.BATCH,
        source="V0: A Generalist Value Model for Any Policy at State Zero, arXiv 2602.03584",
        status=Status.INFERRED,
        number=10,
        note="the regression is ours",
    )

    def __post_init__(self) -> None:
        if self.size < 1 or self.ridge <= 0 or not 0 < self.memory <= 1:
            raise InvalidConfig(
                message("PromptModel", f"size={self.size}, ridge={self.ridge}, memory={self.memory}",
                        "size is at least 1, ridge above 0, memory in (0, 1]", "Correct it")
            )  # fmt: skip

    def __call__(self, ask: RolloutAsk, plan: RolloutPlan) -> RolloutPlan:
        """The plan as it is: what it knows is asked for by those who choose."""
        return plan

    def init(self) -> dict[str, Tensor]:
        """Nothing is known."""
        width = self.size + 1
        return {"gram": torch.zeros(width, width, dtype=torch.float64), "moment": torch.zeros(width, dtype=torch.float64)}

    def update(self, state: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        """Take in the mean rewards of a batch's starts."""
        index, count = label(batch.group)
        phi = self._projected(segment_mean(batch.get("start_features").double(), index, count))
        number = segment_size(index, count, torch.float64)
        target = segment_mean(batch.score.detach().double(), index, count) - self.prior
        weighted = (phi * number[:, None]).cpu()
        return {
            "gram": self.memory * state["gram"] + weighted.T @ phi.cpu(),
            "moment": self.memory * state["moment"] + weighted.T @ target.cpu(),
        }

    def predict(self, state: Mapping[str, Tensor], features: Tensor) -> Tensor:
        """[n] predicted mean rewards of starts with these features [n, D], in [0, 1]."""
        gram = state["gram"] + self.ridge * torch.eye(self.size + 1, dtype=torch.float64)
        weight = torch.linalg.solve(gram, state["moment"])
        return (self.prior + self._projected(features.double().cpu()) @ weight).clamp(0, 1).float()

    def _projected(self, features: Tensor) -> Tensor:
        """[n, size + 1]: standardised, projected at random (always the same way), and a 1."""
        features = torch.nn.functional.layer_norm(features, features.shape[-1:])
        generator = torch.Generator().manual_seed(0)
        project = torch.randn(features.shape[-1], self.size, generator=generator, dtype=torch.float64)
        phi = features @ project.to(features) / features.shape[-1] ** 0.5
        return torch.cat([phi, phi.new_ones(len(phi), 1)], 1)
