"""The planner, piece by piece: operations, activations, cache and traffic against what real iterations do and keep."""

from __future__ import annotations

import dataclasses
import functools
from pathlib import Path

import pytest
import torch
from llm_models import gpt2, trainer
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from bilevel_rl.commands.llm import main
from bilevel_rl.errors import InvalidConfig
from bilevel_rl.levels.processes import Processes
from bilevel_rl.llm import plan, setup
from bilevel_rl.llm.roles.policy import hidden_states

RECIPE = Path(__file__).parents[2] / "examples/configs/gpu_24gb.yaml"
PROMPTS = [[3 + i] * 24 for i in range(8)]  # all as long as the longest, as a plan takes them to be
WITHIN = 0.15
NEVER = 63  # the end token: its logit is barred


def llama(**changes):
    torch.manual_seed(0)
    options = {"vocab_size": 64, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 3,
               "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0,
               "eos_token_id": 1, "pad_token_id": 2}  # fmt: skip
    return LlamaForCausalLM(LlamaConfig(**options | changes)).eval()


def wide():
    return gpt2(vocab_size=64, n_embd=48, n_layer=3, n_head=4, n_positions=64)


@pytest.fixture(autouse=True)
def no_end(monkeypatch):
    """The end token is outside every law, so that rows are as long as they may be."""
    monkeypatch.setattr(setup, "unheld", lambda *_: torch.arange(64) == NEVER)


def made(policy, **changes):
    """A trainer of one iteration."""
    options = {"estimator": "tilted", "steps": 1, "prompts_per_step": 4, "group": 4, "max_prompt_tokens": 24,
               "max_new_tokens": 16, "stop_ids": [NEVER], "pairs_per_step": 4, "objective": "gold"}  # fmt: skip
    return trainer(policy, PROMPTS, **options | changes)


KINDS = {
    "full": {}, "adapters": {"backend": "lora"}, "two that share": {"estimator": "shared"},
    "two of their own": {"estimator": "paired", "backend": "lora"}, "parts": {"micro_batch": 4, "backend": "lora"},
    "a head": {"reward": "linear", "backend": "lora"}, "critics": {"credit": "gae"},
    "pairs": {"objective": "preference", "pairs_per_step": 8}, "again": {"gradient_checkpointing": True, "backend": "lora"},
}  # fmt: skip


@pytest.mark.parametrize("kind", [
    pytest.param(k, marks=[] if k in ("adapters", "full", "critics", "pairs", "again") else pytest.mark.slow) for k in KINDS
])  # fmt: skip
def test_an_iteration_does_the_operations_that_are_planned(kind):
    one = made(llama() if kind != "full" else wide(), **KINDS[kind])
    with FlopCounterMode(display=False) as counter:
        one.iterate(0)
    config = dataclasses.replace(one.config, reward=KINDS[kind].get("reward", one.config.reward))
    planned = plan.foresee(config, shape_of(one))
    assert planned.writing + planned.learning == pytest.approx(counter.get_total_flops(), rel=WITHIN)
    assert planned.tokens == one.engine.samples


def shape_of(one):
    with one.roles.model("policy") as model:
        return model.config


@pytest.mark.parametrize(("policy", "backend"), [
    (wide, "full"), (llama, "lora"), pytest.param(llama, "full", marks=pytest.mark.slow),
    pytest.param(wide, "lora", marks=pytest.mark.slow),
])  # fmt: skip
def test_the_blocks_keep_what_is_planned(policy, backend):
    one = made(policy(), backend=backend)
    rollout = one.engine.sample("policy", 0)
    kept: dict[int, int] = {}
    alive = []

    def pack(value):
        storage = value.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        alive.append(value)
        return value

    with one.roles.model("policy") as model:
        own = {p.untyped_storage().data_ptr() for p in model.parameters()}
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
            hidden = hidden_states(model, rollout)
    measured = sum(size for place, size in kept.items() if place not in own)
    assert hidden.requires_grad
    assert plan.foresee(one.config, shape_of(one)).activations == pytest.approx(measured, rel=WITHIN)


def test_writing_caches_what_is_planned():
    one = made(llama())
    with torch.no_grad(), one.roles.model("policy") as model:
        cache = model(input_ids=torch.zeros(16, 40, dtype=torch.long), use_cache=True).past_key_values
    measured = sum(t.nbytes for layer in cache.layers for t in (layer.keys, layer.values))
    counts = plan.count(one.config, shape_of(one))
    assert counts.cached * 16 * 40 == measured


@pytest.mark.parametrize("backend", [pytest.param("full", marks=pytest.mark.slow), "lora"])
def test_what_is_summed_over_processes_is_what_is_planned(backend, monkeypatch):
    one = made(llama(), backend=backend)
    sent = []
    monkeypatch.setattr(Processes, "add", lambda self, tensors: sent.extend(t.nbytes for t in tensors))
    one.iterate(0)
    two = plan.foresee(one.config, shape_of(one), gpus=2)
    assert two.exchanged == pytest.approx(sum(sent), rel=WITHIN)  # a ring of two sends what it sums, once


def test_every_layer_is_like_another():
    config = dataclasses.replace(made(llama()).config, backend="lora")
    few, many = (plan.foresee(config, llama(num_hidden_layers=n).config) for n in (2, 4))
    for name in ("weights", "trained", "activations", "learning"):
        assert getattr(many, name) > getattr(few, name)
    three = plan.foresee(config, llama(num_hidden_layers=3).config)
    assert three.learning == pytest.approx((few.learning + many.learning) / 2)


@pytest.mark.slow
def test_a_base_in_pieces_holds_less_and_sends_more(capsys):
    whole, pieces = (
        plan.foresee(plan.Config.load(RECIPE), plan.known("7B"), 8, sharded=sharded) for sharded in (False, True)
    )
    assert pieces.weights < 0.35 * whole.weights
    assert pieces.gathered > 100 * (whole.gathered + 1)
    assert pieces.seconds["communication"] > whole.seconds["communication"]
    assert whole.fits()


def test_pieces_of_all_that_trains_are_held_and_sent_as_planned():
    """Two policies, a reward model and the reference of four networks with equal blocks."""
    one = made(llama(), estimator="shared")
    (block, *_), layers = one.roles.reference.model.layers, 3
    each, end = sum(p.nbytes for p in block.parameters()), one.roles.reference.lm_head.weight.nbytes
    network = layers * each + 2 * end  # its two ends are no one weight
    near = functools.partial(pytest.approx, rel=0.02)  # norms and the reward's small head stay whole
    whole, pieces = (plan.foresee(one.config, shape_of(one), 2, sharded=sharded) for sharded in (False, True))
    assert whole.trained - pieces.trained == near((3 * network - end) / 2)  # the reward model has no head of that kind
    assert whole.optimiser - pieces.optimiser == near(3 * (3 * network - end) / 2)  # a gradient and two moments
    assert whole.weights - pieces.weights == near(network / 2 - 3 * each - 2 * end)
    assert pieces.cache - whole.cache == near(network / 2)  # whole while it writes
    assert pieces.gathered == near(network / 2)  # once: theta writes for both
    assert plan.foresee(one.config, shape_of(one), 2, sharded=True).sharded


@pytest.mark.slow
def test_what_does_not_fit_is_said(capsys):
    assert main(["plan", str(RECIPE), "--size", "7B", "--memory", "8"]) == 1
    assert "it does not fit: try" in capsys.readouterr().out
    with pytest.raises(InvalidConfig, match="each GPU gets equally many"):
        plan.foresee(plan.Config.load(RECIPE), plan.known("7B"), 3)
    with pytest.raises(InvalidConfig, match=r"Did you mean '7B'"):
        plan.known("7.B")
