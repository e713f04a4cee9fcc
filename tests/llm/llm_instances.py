"""Language-model instances small enough to enumerate every completion, and their exact answers by enumeration."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import numpy as np
import torch
from torch import Tensor, nn

TAU, LAMBDA = 0.3, 0.01


class GRUPolicy(nn.Module):
    """A recurrent language model with transformers' calling convention; id `vocabulary` is the prompt."""

    def __init__(self, vocabulary: int = 8, width: int = 48) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocabulary + 1, width)
        self.gru = nn.GRU(width, width, batch_first=True)
        self.head = nn.Linear(width, vocabulary)

    def forward(self, input_ids, attention_mask=None, position_ids=None):
        hidden, _ = self.gru(self.embed(input_ids))
        return SimpleNamespace(logits=self.head(hidden))


def enlarged(model: nn.Module, factor: float = 2.5) -> nn.Module:
    """The model with its weights multiplied: a reference that is not flat."""
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(factor)
    return model


class BagReward(nn.Module):
    """r_x = 3 x (mean one-hot of the completion) . x"""

    def __init__(self, x0: Tensor) -> None:
        super().__init__()
        self.x = nn.Parameter(x0.clone())

    def features(self, completions: Tensor) -> Tensor:
        return 3 * nn.functional.one_hot(completions, len(self.x)).to(self.x).mean(1)

    def forward(self, rollout) -> Tensor:
        return self.features(rollout.completions) @ self.x


class BagInstance:
    """Vocabulary 8, length 5: 32,768 completions. Gold: twice the mean token score less 1.5 x repeats."""

    def __init__(self, seed: int = 0, vocabulary: int = 8, length: int = 5) -> None:
        random = np.random.default_rng(seed)
        self.vocabulary, self.length = vocabulary, length
        self.scores = torch.tensor(random.uniform(-1, 1, vocabulary), dtype=torch.float32)
        self.x0 = torch.tensor(0.5 * random.standard_normal(vocabulary), dtype=torch.float32)
        torch.manual_seed(seed)
        self.policy = enlarged(GRUPolicy(vocabulary))
        self.all = torch.tensor(list(itertools.product(range(vocabulary), repeat=length)))

    def gold_of(self, completions: Tensor) -> Tensor:
        repeats = (completions[:, 1:] == completions[:, :-1]).float().mean(1)
        return 2 * self.scores[completions].mean(1) - 1.5 * repeats

    def gold(self, completion_ids, **_):
        return self.gold_of(torch.tensor(completion_ids)).tolist()

    @torch.no_grad()
    def log_law(self, policy: nn.Module) -> Tensor:
        """[8**5] log-probability of each completion."""
        start = torch.full((len(self.all), 1), self.vocabulary)
        ids = torch.cat([start, self.all], 1)
        logp = policy(ids).logits[:, :-1].log_softmax(-1)
        return logp.gather(-1, self.all[..., None])[..., 0].sum(1).double()

    def solve(self, reference: Tensor, x: Tensor, bonus: float = 0.0) -> Tensor:
        """The law that maximises E[r + bonus gold] - tau KL: proportional to reference exp((r + bonus gold)/tau)."""
        r = BagReward(x.double()).features(self.all).double() @ x.double()
        return (reference + (r + bonus * self.gold_of(self.all).double()) / TAU).softmax(0)

    def phi(self, reference: Tensor, x: Tensor) -> Tensor:
        """f(x, pi*(x))."""
        law = self.solve(reference, x)
        return -(law * self.gold_of(self.all).double()).sum() + LAMBDA * x.double().square().sum()

    def hyper_gradient(self, reference: Tensor, x: Tensor) -> Tensor:
        """Exact gradient of phi: 2 lambda x - Cov_{pi*}(gold, grad r) / tau."""
        law, gold = self.solve(reference, x), self.gold_of(self.all).double()
        features = BagReward(x.double()).features(self.all).double()
        return 2 * LAMBDA * x.double() - (law * (gold - (law * gold).sum())) @ features / TAU

    def penalty_gradient(self, reference: Tensor, x: Tensor, w: float) -> Tensor:
        """2 lambda x + (1/w)(E_{pi*} - E_{pi*_w})[grad r]: what the single loop aims at, biased by O(w)."""
        features = BagReward(x.double()).features(self.all).double()
        return 2 * LAMBDA * x.double() + (self.solve(reference, x) - self.solve(reference, x, w)) @ features / w
