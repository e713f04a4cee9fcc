"""Random batches with every field and extra, in 64 bit; one thread."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from bilevel_rl.policy_gradient.batch import Batch, paid_at_end

torch.set_num_threads(1)

VOCABULARY = 5


def random_batch(seed: int = 0, prompts: int = 3, samples: int = 4, width: int = 7, terms: int = 2) -> Batch:
    """Responses with a gap in their masks (an observation), every field and extra, NaN in the padding."""
    g = torch.Generator().manual_seed(seed)
    n = prompts * samples

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=g)

    length = 2 + integers(width - 1, n)
    mask = torch.arange(width) < length[:, None]
    mask[:, 1] = False  # an observation between the first action and the rest
    logits = normal(n, width, VOCABULARY)
    law = logits.log_softmax(-1)
    token = integers(VOCABULARY, n, width)
    logp = law.gather(-1, token[..., None])[..., 0]
    turn = ((torch.arange(width) >= 2).long() + (torch.arange(width) >= 4).long()).expand(n, width)
    group = torch.arange(prompts).repeat_interleave(samples)
    noise = torch.where(mask, 0, torch.nan)

    def by_turn(values: torch.Tensor) -> torch.Tensor:
        return values.gather(1, turn)

    winner = torch.arange(n) % 2 == 0
    return Batch.make(
        mask=mask,
        reward=paid_at_end(mask, normal(n, terms)),
        group=group,
        trajectory=torch.arange(n) + 100,
        done=integers(4, n) > 0,
        logp=logp + noise,
        old=logp + 0.3 * normal(n, width) + noise,
        ref=logp + 0.3 * normal(n, width) + noise,
        entropy=-(law.exp() * law).sum(-1) + noise,
        value=normal(n, width) + noise,
        kl=normal(n, width).square() + noise,
        advantage=normal(n, width) + noise,
        weight=uniform(n, width) + noise,
        turn=turn,
        state_key=by_turn(integers(3, n, 3)),
        action_key=by_turn(integers(2, n, 3)),
        answer=integers(3, n),
        duration=uniform(n) + 0.1,
        score_norm=uniform(n, width) + noise,
        switch=by_turn(integers(2, n, 3)).bool(),
        value_high=normal(n, width) + noise,
        confidence=by_turn(uniform(n, 3)) + noise,
        accuracy=by_turn(uniform(n, 3)) + noise,
        other_advantage=normal(n, width) + noise,
        predicted_gain=0.5 * normal(n, width) + noise,
        predicted_shift=0.1 * uniform(n, width) + noise,
        hint=(torch.arange(width) < 3).expand(n, width) & winner[:, None],
        hinted=winner,
        replayed=torch.arange(n) % 5 == 0,
        baseline=normal(n),
        prompt_value=uniform(prompts)[group],
        demonstration=torch.arange(n) % samples == 0,
        prefix_value=normal(n, width) + noise,
        sensitivity=normal(n, 3),
        cover=integers(2, n, width, 4).bool(),
        behaviour=logp + 0.3 * normal(n, width) + noise,
        target=token,
        logits=logits + noise[..., None],
        winner=winner,
        path=torch.stack([torch.arange(n) % samples // 2, torch.arange(n) % samples], 1),
        depth=(torch.arange(width) >= 4).long().expand(n, width),
        final_value=normal(n),
    )


@pytest.fixture
def make_batch() -> Callable[..., Batch]:
    """The generator of random batches."""
    return random_batch


@pytest.fixture
def batch() -> Batch:
    """The default random batch."""
    return random_batch()
