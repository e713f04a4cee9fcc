"""Every loss and advantage that TRL 1.16 has against ours: value and gradient, on random masks and uneven responses.

TRL's own methods run, on a stand-in for the trainer whose model is a tensor of log-probabilities.
"""

from __future__ import annotations

import collections
import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import types

import pytest
import torch

from bilevel_rl.policy_gradient import compose
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.recipe import Recipe

if importlib.util.find_spec("trl") is None:
    pytest.skip("could not import 'trl'", allow_module_level=True)
LONGEST, PROMPTS, SAMPLES = 9, 3, 4


@functools.cache
def trl(name):
    """The module of one of TRL's trainers: imported by the process that runs these tests, not by all that collect them."""
    return importlib.import_module(f"trl.trainer.{name}_trainer")


def random_batch(seed, gaps=True):
    """Responses of uneven length (the mask may have gaps where observations stand), log-probabilities that have moved."""
    g = torch.Generator().manual_seed(seed)
    n = PROMPTS * SAMPLES

    def normal(*shape):
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    mask = torch.arange(LONGEST) < torch.randint(1, LONGEST + 1, (n, 1), generator=g)
    if gaps:
        mask &= torch.rand(n, LONGEST, generator=g) < 0.8
        mask[:, 0] = True
    old = -normal(n, LONGEST).abs()
    return Batch.make(
        mask=mask, reward=normal(n), group=torch.arange(n) // SAMPLES, old=old, logp=old + 0.4 * normal(n, LONGEST),
        ref=old + 0.3 * normal(n, LONGEST), entropy=normal(n, LONGEST).abs().float().double(),
    )  # fmt: skip


# -- losses -------------------------------------------------------------------------------------------------


class Alone:
    """One process of accelerate."""

    num_processes, process_index, sync_gradients, device = 1, 0, True, torch.device("cpu")

    def gather(self, x):
        return x

    gather_for_metrics = gather

    def reduce(self, x, reduction="sum"):
        return x

    def pad_across_processes(self, x, **_):
        return x


def kind_of(name):
    """TRL's class of a trainer."""
    return getattr(trl(name), f"{name.upper()}Trainer")


def trainer(name, leaf, entropy, **options):
    """What TRL's loss reads of a trainer, with its defaults."""
    arguments = {
        "delta": None, "use_bias_correction_kl": False, "sapo_temperature_pos": 1.0, "sapo_temperature_neg": 1.05,
        "vespo_k_pos": 2.0, "vespo_lambda_pos": 3.0, "vespo_k_neg": 3.0, "vespo_lambda_neg": 2.0,
        "steps_per_generation": 1,
    }  # fmt: skip
    known = {
        "loss_type": "grpo", "importance_sampling_level": "token", "beta": 0.0, "epsilon_low": 0.2, "epsilon_high": 0.2,
        "top_entropy_quantile": 1.0, "off_policy_mask_threshold": None, "entropy_coef": 0.0,
    }  # fmt: skip
    made = types.SimpleNamespace(
        accelerator=Alone(), args=types.SimpleNamespace(**{k: options.pop(k, v) for k, v in arguments.items()}),
        aux_loss_enabled=False, use_vllm=False, vllm_importance_sampling_correction=False, use_adaptive_entropy=False,
        model=types.SimpleNamespace(training=True), current_gradient_accumulation_steps=1,
        max_completion_length=LONGEST, _metrics={"train": collections.defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *_, **__: (leaf, entropy, None), **known | options,
    )  # fmt: skip
    made._entropy_bonus_enabled = made.entropy_coef != 0
    kind = kind_of(name)
    for name in ("get_high_entropy_mask", "get_off_policy_mask", "get_gamma_weights"):
        if hasattr(kind, name):
            function = kind.__dict__[name]
            static = isinstance(function, staticmethod)
            setattr(made, name, function.__func__ if static else types.MethodType(function, made))
    return made, kind


def theirs(name, batch, advantage, **options):
    """TRL's loss and its gradient in the log-probabilities."""
    leaf = batch.logp.clone().requires_grad_()
    made, kind = trainer(name, leaf, batch.entropy, **options)
    mask = batch.mask.long()
    inputs = {
        "prompt_ids": mask[:, :1], "prompt_mask": mask[:, :1], "completion_ids": mask, "completion_mask": mask,
        "advantages": advantage, "old_per_token_logps": batch.old, "ref_per_token_logps": batch.ref,
        "num_items_in_batch": mask.sum(), "old_logps": torch.where(batch.mask, batch.old, 0).sum(1),
    }  # fmt: skip
    loss = kind._compute_loss(made, None, inputs)
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


def ours(text, batch, advantage):
    """The same of a recipe's loss and regularisers."""
    recipe = compose(text)
    spread = torch.where(batch.mask, advantage[:, None], 0)
    leaf = batch.logp.clone().requires_grad_()
    seen = batch.replace(advantage=spread)
    if recipe.weigh:  # as `decide` does, with the advantage given
        seen = Recipe(weigh=recipe.weigh, credit=lambda _: spread).decide(seen.replace(advantage=None))
    loss, _ = recipe.objective(seen.replace(logp=leaf))
    return loss.detach(), torch.autograd.grad(loss, leaf)[0]


LOSSES = {
    "grpo": ({}, "loss=clipped(aggregate=per_sequence)"),
    "grpo clip higher": ({"epsilon_high": 0.28}, "loss=clipped(high=0.28, aggregate=per_sequence)"),
    "two-sided": ({"delta": 1.5}, "loss=clipped(dual=1.5, aggregate=per_sequence)"),
    "bnpo": ({"loss_type": "bnpo"}, "loss=clipped"),
    "dapo": ({"loss_type": "dapo", "epsilon_high": 0.28}, "loss=clipped(high=0.28)"),
    "dr_grpo": ({"loss_type": "dr_grpo"}, f"loss=clipped(aggregate=per_constant(length={LONGEST}))"),
    "gspo": (
        {"importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4}, "loss=gspo",
    ),
    "gspo wide": ({"importance_sampling_level": "sequence"}, "loss=gspo(low=0.2, high=0.2)"),
    "luspo": (
        {"loss_type": "luspo", "importance_sampling_level": "sequence"},
        "loss=gspo(low=0.2, high=0.2, aggregate=sum_of_tokens)",
    ),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 1.3}, "loss=cispo(low=1.0, high=0.3)"),
    "sapo": ({"loss_type": "sapo"}, "loss=sapo"),
    "vespo": ({"loss_type": "vespo"}, "loss=vespo"),
    "kl": ({"beta": 0.3}, "loss=clipped(aggregate=per_sequence), "
           "regular=0.3*sampled_kl(estimator=k3, aggregate=per_sequence)"),
    "kl corrected": ({"beta": 0.3, "use_bias_correction_kl": True}, "loss=clipped(aggregate=per_sequence), "
                     "regular=0.3*sampled_kl(estimator=k3, corrected=True, aggregate=per_sequence)"),
    "high entropy": ({"loss_type": "bnpo", "top_entropy_quantile": 0.3}, "weigh=high_entropy(share=0.3), loss=clipped"),
    "off-policy mask": (
        {"loss_type": "bnpo", "off_policy_mask_threshold": 0.05}, "weigh=off_policy_mask(threshold=0.05), loss=clipped",
    ),
    "entropy bonus": ({"loss_type": "bnpo", "entropy_coef": 0.1}, "loss=clipped, regular=0.1*entropy"),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", LOSSES)
def test_loss_and_gradient_are_trls(name, seed):
    options, text = LOSSES[name]
    batch = random_batch(seed)
    advantage = torch.randn(len(batch), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value, gradient = theirs("grpo", batch, advantage, **options)
    mine, slope = ours(text, batch, advantage)
    torch.testing.assert_close(mine, value, rtol=1e-6, atol=1e-9)  # TRL takes quantiles in 32 bit
    torch.testing.assert_close(slope, torch.where(batch.mask, gradient, 0), rtol=1e-6, atol=1e-9)
    assert gradient.abs().max() > 0


@pytest.mark.parametrize("seed", range(3))
def test_rloos_sequence_loss_is_trls(seed):
    batch = random_batch(seed)
    advantage = torch.randn(len(batch), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    value, gradient = theirs("rloo", batch, advantage)
    mine, slope = ours("loss=gspo(low=0.2, high=0.2, normalised=False)", batch, advantage)
    torch.testing.assert_close(mine, value)
    torch.testing.assert_close(slope, torch.where(batch.mask, gradient, 0))


def test_every_loss_type_of_trl_is_compared():
    source = inspect.getsource(kind_of("grpo")._compute_loss)
    known = set(re.findall(r'loss_type == "(\w+)"', source))
    for several in re.findall(r"loss_type in \[([^\]]+)\]", source):
        known |= set(re.findall(r'"(\w+)"', several))
    assert known == {options.get("loss_type", "grpo") for options, _ in LOSSES.values()}


# -- advantages ---------------------------------------------------------------------------------------------


def advantages_of(name, rewards, weights, **options):
    """Run TRL's scoring on completions of one token whose rewards are given, and take its advantages."""
    n, terms = rewards.shape
    names = [f"reward{k}" for k in range(terms)]
    kind = kind_of(name)
    ids = [[1]] * n
    made = types.SimpleNamespace(
        accelerator=Alone(), model=types.SimpleNamespace(training=True), environment_factories=None, tools=None,
        environments=None, use_vllm=False, vllm_importance_sampling_correction=False, beta=0.0, num_iterations=1,
        pad_to_multiple_of=None, mask_truncated_completions=False, num_generations=SAMPLES, reward_funcs=names,
        reward_func_names=names, reward_weights=torch.tensor(weights, dtype=torch.float64), reward_clip_range=None,
        normalize_advantages=False, _is_vlm=False, log_multimodal=False, rollout_func=None, aux_loss_enabled=False,
        _metrics={"train": collections.defaultdict(list)}, _pending_extra_logs={}, _pending_metrics={},
        _logs=collections.defaultdict(list, rewards=collections.defaultdict(list), extra=collections.defaultdict(list)),
        args=types.SimpleNamespace(
            gradient_accumulation_steps=1, steps_per_generation=1, per_device_train_batch_size=n,
            gradient_checkpointing_kwargs=None,
        ),
        _tokenizer=types.SimpleNamespace(pad_token_id=0), processing_class=types.SimpleNamespace(
            batch_decode=lambda rows, **_: ["x"] * len(rows), pad_token_id=0,
        ),
        pad_token_id=0, eos_token_id=2, eos_token_ids=[2], num_generations_eval=SAMPLES, chat_template_kwargs={},
        _calculate_rewards=lambda *_: rewards, temperature=1.0,
        _generate=lambda prompts: GENERATED[name](ids),
        _get_per_token_logps_and_entropies=lambda *_, **__: (torch.zeros(n, 1), None, None), **options,
    )  # fmt: skip
    inputs = [{"prompt": "p"} for _ in range(n)]
    with contextlib.ExitStack() as stack:
        stack.enter_context(pytest.MonkeyPatch.context()).setattr(
            trl(name), "disable_gradient_checkpointing", lambda *_: contextlib.nullcontext()
        )
        return kind._generate_and_score_completions(made, inputs)["advantages"]


GENERATED = {
    "grpo": lambda ids: (ids, ids, None, ["x"] * len(ids), None, {}, None, None),
    "rloo": lambda ids: (ids, ids, ["x"] * len(ids)),
}


def one_token(rewards):
    n = len(rewards)
    return Batch.make(mask=torch.ones(n, 1), reward=rewards[:, None, :], group=torch.arange(n) // SAMPLES)


ADVANTAGES = {
    "group": ("grpo", {"scale_rewards": "group", "multi_objective_aggregation": "sum_then_normalize"}, "group_norm"),
    "none": ("grpo", {"scale_rewards": "none", "multi_objective_aggregation": "sum_then_normalize"}, "group_mean"),
    "batch": (
        "grpo", {"scale_rewards": "batch", "multi_objective_aggregation": "sum_then_normalize"},
        "group_norm(over='batch')",
    ),
    "gdpo": ("grpo", {"scale_rewards": "group", "multi_objective_aggregation": "normalize_then_sum"}, "gdpo"),
    "rloo": ("rloo", {}, "leave_one_out"),
}  # fmt: skip


@pytest.mark.parametrize("equal", [False, True], ids=["", "one prompt's rewards equal"])
@pytest.mark.parametrize("name", ADVANTAGES)
def test_advantages_are_trls(name, equal):
    which, options, credit = ADVANTAGES[name]
    rewards = torch.randn(PROMPTS * SAMPLES, 2, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    if equal:
        rewards[:SAMPLES] = 0.5
    expected = advantages_of(which, rewards, (1.0, 1.0), **options)
    mine = compose(f"credit={credit}").credit(one_token(rewards))[:, 0]
    torch.testing.assert_close(mine, expected.double(), rtol=1e-6, atol=1e-7)


def test_a_uniform_weight_of_the_rewards_is_trls_too():
    rewards = torch.randn(PROMPTS * SAMPLES, 2, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
    options = {"scale_rewards": "group", "multi_objective_aggregation": "normalize_then_sum"}
    expected = advantages_of("grpo", rewards, (1.0, 0.25), **options)
    mine = compose("credit=gdpo(weights=(1.0, 0.25))").credit(one_token(rewards))[:, 0]
    torch.testing.assert_close(mine, expected.double(), rtol=1e-6, atol=1e-7)
