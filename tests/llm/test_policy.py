"""Token statistics: the closed-form gradients are autograd's, the KL is a KL."""

from __future__ import annotations

import torch
from llm_models import gpt2

from bilevel_rl.levels.estimators import sampled_kl
from bilevel_rl.llm.roles.policy import token_statistics


def test_values_and_gradients_are_those_of_the_definitions():
    z = torch.randn(3, 4, 7, dtype=torch.double, requires_grad=True)
    q = torch.randn(3, 4, 7, dtype=torch.double).log_softmax(-1)
    tokens = torch.randint(0, 7, (3, 4))
    assert torch.autograd.gradcheck(lambda z: tuple(token_statistics(z, tokens, q)), z)
    logp, kl, entropy = token_statistics(z, tokens, q)
    law = torch.distributions.Categorical(logits=z)
    torch.testing.assert_close(logp, law.log_prob(tokens))
    torch.testing.assert_close(entropy, law.entropy())
    torch.testing.assert_close(kl, torch.distributions.kl_divergence(law, torch.distributions.Categorical(logits=q)))


def test_each_statistic_may_be_used_alone():
    z = torch.randn(2, 5, dtype=torch.double, requires_grad=True)
    q, tokens = torch.randn(2, 5, dtype=torch.double).log_softmax(-1), torch.tensor([1, 4])
    for i in range(3):
        (found,) = torch.autograd.grad(token_statistics(z, tokens, q)[i].sum(), z)
        law = z.log_softmax(-1)
        plain = (law.gather(-1, tokens[:, None]).sum(), (law.exp() * (law - q)).sum(), -(law.exp() * law).sum())
        (wanted,) = torch.autograd.grad(plain[i], z)
        torch.testing.assert_close(found, wanted)


def test_exact_kl_is_never_negative_and_zero_at_the_reference():
    z = 5 * torch.randn(200, 50)
    tokens = torch.zeros(200, dtype=torch.long)
    assert token_statistics(z, tokens, torch.randn(200, 50).log_softmax(-1)).kl.min() >= 0
    assert token_statistics(z, tokens, z.log_softmax(-1)).kl.abs().max() == 0
    near = (z + 1e-4 * torch.randn(200, 50)).log_softmax(-1)  # in 32 bits the sum alone would fall below 0 here
    assert (z.softmax(-1) * (z.log_softmax(-1) - near)).sum(-1).min() < 0
    assert token_statistics(z, tokens, near).kl.min() >= 0


def test_sampled_estimates_have_the_exact_kl_as_their_mean():
    p, q = torch.randn(2, 9, dtype=torch.double).log_softmax(-1)
    exact = (p.exp() * (p - q)).sum()
    for kind in ("k1", "k3"):
        torch.testing.assert_close((p.exp() * sampled_kl(p, q, kind)).sum(), exact)
    assert sampled_kl(p, q, "k3").min() >= 0 > sampled_kl(p, q, "k1").min()


def test_no_dropout_is_left_anywhere():
    from llm_models import trainer

    made = trainer(gpt2(resid_pdrop=0.5, attn_pdrop=0.5, embd_pdrop=0.5), credit="gae")
    for module in made.roles.modules.values():
        assert not module.training
        assert all(part.p == 0.0 for part in module.modules() if isinstance(part, torch.nn.Dropout))
