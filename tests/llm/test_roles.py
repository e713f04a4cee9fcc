"""Roles and their two backends: who is where, who moves, and PEFT's traps."""

from __future__ import annotations

import pytest
import torch
from llm_models import gpt2, llama, stirred, trainer, weights
from torch import nn

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.roles.backend import FullRoles, LoraRoles, checkpoint_activations
from bilevel_rl.llm.sampling.sampler import Sampler, uniforms

PROMPTS = [Prompt(tuple(range(3, 3 + n)), None) for n in (4, 2, 3, 1)]


@pytest.fixture
def rollout():
    return Sampler((1,), 2)(gpt2(), PROMPTS, uniforms(4, 6, 0))


@pytest.mark.parametrize("make", [FullRoles, LoraRoles])
def test_all_roles_begin_at_the_reference(make, rollout):
    roles = make(gpt2(), critics=True)
    assert roles.names == ("policy", "policy_l", "critic", "critic_l", "reward")
    reference = roles.logits("reference", rollout)
    for role in ("policy", "policy_l"):
        assert torch.equal(roles.logits(role, rollout), reference)
    assert roles.values("critic", rollout).abs().max() == roles.rewards(rollout).abs().max() == 0
    assert not reference.requires_grad


@pytest.mark.parametrize("make", [FullRoles, LoraRoles])
def test_a_roles_loss_reaches_its_own_parameters_and_no_other(make, rollout):
    roles = stirred(make(gpt2(), critics=True))
    calls = {
        "policy": lambda: roles.logits("policy", rollout), "policy_l": lambda: roles.logits("policy_l", rollout),
        "critic": lambda: roles.values("critic", rollout), "critic_l": lambda: roles.values("critic_l", rollout),
        "reward": lambda: roles.rewards(rollout),
    }  # fmt: skip
    for role, call in calls.items():
        call().square().sum().backward()
        for other in roles.names:
            grads = [p.grad for p in roles.parameters(other).values()]
            touched = [g is not None and bool(g.any()) for g in grads]
            # the body's last bias and such may have no effect on a head: nearly all is enough, none means none
            assert (sum(touched) > 0.8 * len(touched)) if other == role else not any(touched), (role, other)
            for p in roles.parameters(other).values():
                p.grad = None


def test_the_two_followers_keep_their_own_weights(rollout):
    roles = stirred(LoraRoles(gpt2(), critics=True))
    one, two = roles.logits("policy", rollout), roles.logits("policy_l", rollout)
    assert (one - two).abs().max() > 1e-2
    assert torch.equal(one, roles.logits("policy", rollout))


def test_using_the_reference_or_another_role_freezes_no_adapter(rollout):
    """Traps: `set_adapter` freezes every other adapter, and leaving `disable_adapter` freezes them again."""
    roles = LoraRoles(gpt2(), critics=True)
    roles.logits("policy", rollout)
    roles.logits("reference", rollout)
    roles.rewards(rollout)
    assert all(p.requires_grad for role in roles.names for p in roles.parameters(role).values())
    base = [name for name, p in roles.base.named_parameters() if p.requires_grad and "lora_" not in name]
    assert base == []


def test_the_reference_stays_the_base_whatever_the_adapters_learn(rollout):
    plain = FullRoles(gpt2())
    roles = stirred(LoraRoles(gpt2()))
    torch.testing.assert_close(roles.logits("reference", rollout), plain.logits("reference", rollout))


@pytest.mark.parametrize("make", [gpt2, llama])
def test_gradients_with_checkpointing_are_those_without(make, rollout):
    """Trap: the adapter must not be switched between a checkpointed forward pass and its backward pass."""
    found = []
    for checkpointing in (False, True):
        roles = stirred(LoraRoles(make().double(), critics=True))
        if checkpointing:
            checkpoint_activations(roles.base)
        for role in ("policy", "policy_l"):
            with roles.model(role):
                roles.logits(role, rollout).square().sum().backward()
        found.append([p.grad for role in ("policy", "policy_l") for p in roles.parameters(role).values()])
    for plain, checkpointed in zip(*found, strict=True):
        torch.testing.assert_close(checkpointed, plain)


@pytest.mark.parametrize("estimator", ["shared", "paired"])
def test_a_run_with_checkpointed_adapters_equals_the_run_without(estimator):
    runs = []
    for checkpointing in (False, True):
        made = trainer(
            backend="lora", gradient_checkpointing=checkpointing, dtype="float64", credit="gae", estimator=estimator,
            objective="preference", replay_pairs=2,
        )  # fmt: skip
        assert made.one_pass is not checkpointing
        made.train()
        runs.append(weights(made))
    for key in runs[0]:
        torch.testing.assert_close(runs[1][key], runs[0][key], atol=1e-9, rtol=1e-7)


def test_checkpointing_is_really_on():
    made = trainer(gradient_checkpointing=True)
    model = made.roles.modules["policy"]
    recomputed = []
    hook = model.transformer.h[0].ln_1.register_forward_pre_hook(lambda *_: recomputed.append(1))
    made.iterate(0)
    hook.remove()
    plain = trainer()
    once = []
    hook = plain.roles.modules["policy"].transformer.h[0].ln_1.register_forward_pre_hook(lambda *_: once.append(1))
    plain.iterate(0)
    assert len(recomputed) == len(once) + 1


def test_targets_that_match_nothing_name_the_modules_that_exist():
    with pytest.raises(InvalidConfig, match=r"config.lora_targets: got \['q_projj'\].*c_attn.*c_proj"):
        LoraRoles(gpt2(), targets=["q_projj"])


def test_full_rank_adapters_can_be_any_full_weights(rollout):
    """LoRA at full rank spans the full backend: the same function when its product is the weights' change."""
    target, roles = gpt2(1).double(), LoraRoles(gpt2(0).double(), rank=16, scale=1.0, targets=["c_attn"])
    base = gpt2(0).double()
    with torch.no_grad():
        for name, module in roles.base.named_modules():
            if not name.endswith("c_attn"):
                continue
            change = target.get_submodule(name).weight - base.get_submodule(name).weight  # Conv1D: [in, out]
            module.lora_A["policy"].weight.copy_(torch.eye(16))
            module.lora_B["policy"].weight.copy_(change.T)
            base.get_submodule(name).weight.copy_(target.get_submodule(name).weight)
    full = FullRoles(base)
    torch.testing.assert_close(roles.logits("policy", rollout), full.logits("policy", rollout))


def test_a_policy_without_a_body_says_what_needs_one():
    class Plain(nn.Module):
        def __init__(self):
            super().__init__()
            self.x = nn.Parameter(torch.zeros(3))

    with pytest.raises(InvalidConfig, match="reward: classifier: got a policy of type Plain"):
        FullRoles(Plain())
    with pytest.raises(InvalidConfig, match="a recipe with critics: got a policy of type Plain"):
        FullRoles(Plain(), reward=Plain(), critics=True)
