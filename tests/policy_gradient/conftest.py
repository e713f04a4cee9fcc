"""Random batches with every field, in 64 bit; one thread."""

from __future__ import annotations

import pytest
import torch

from bilevel_rl.policy_gradient.batch import Batch, paid_at_end

torch.set_num_threads(1)


def random_batch(seed: int = 0, prompts: int = 3, samples: int = 4, width: int = 7, terms: int = 2) -> Batch:
    """Responses with gaps in their masks (multi-turn), all fields present, nonsense in the padding."""
    g = torch.Generator().manual_seed(seed)
    n, v = prompts * samples, 5

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=g)

    length = 2 + integers(width - 1, n)
    mask = torch.arange(width) < length[:, None]
    mask[:, 1] = False  # an observation between the first action and the rest
    logits = normal(n, width, v)
    law = logits.log_softmax(-1)
    token = integers(v, n, width)
    logp = law.gather(-1, token[..., None])[..., 0]
    turn = (torch.arange(width) >= 2).long() + (torch.arange(width) >= 4).long()
    group = torch.arange(prompts).repeat_interleave(samples)
    noise = torch.where(mask, 0, torch.nan)
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
        weight=torch.rand(n, width, generator=g, dtype=torch.float64) + noise,
        turn=turn.expand(n, width),
        state_key=integers(3, n, 3).gather(1, turn.expand(n, width)),
        answer=integers(3, n),
        duration=torch.rand(n, generator=g, dtype=torch.float64) + 0.1,
    )


@pytest.fixture
def batch() -> Batch:
    """The default random batch."""
    return random_batch()
