"""Sampling: the exact law, masks from lengths, and three decoders that agree."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from llm_models import gold, gpt2, llama, trainer
from transformers import (
    BloomConfig,
    BloomForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from bilevel_rl.errors import InvalidProblem
from bilevel_rl.llm.data.prompts import Prompt, as_prompts, prompts_of
from bilevel_rl.llm.forward import precision
from bilevel_rl.llm.roles.policy import completion_logits
from bilevel_rl.llm.sampling import captured, decoding
from bilevel_rl.llm.sampling.gathering import gather, widen
from bilevel_rl.llm.sampling.rollout import assemble, pad_prompts
from bilevel_rl.llm.sampling.sampler import Sampler, inverse_cdf, uniforms

SMALL = {"vocab_size": 13, "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1}  # fmt: skip


def sliding():
    return MistralForCausalLM(MistralConfig(**SMALL, sliding_window=2))


def flash():
    model = llama()
    model.config._attn_implementation = "flash_attention_2"
    return model


def experts():
    return MixtralForCausalLM(MixtralConfig(**SMALL, num_local_experts=2))


def alibi():
    return BloomForCausalLM(BloomConfig(vocab_size=13, hidden_size=8, n_layer=1, n_head=2))


PADDED = [Prompt(tuple(range(3, 3 + n)), None) for n in (4, 2, 3, 1, 4, 2)]


def exact_logp(model, rollout):
    logp = completion_logits(model, rollout).log_softmax(-1)
    return logp.gather(-1, rollout.completions[..., None])[..., 0] * rollout.mask


@pytest.mark.parametrize("make", [gpt2, llama])
def test_sampler_returns_the_log_probability_of_the_law_that_training_differentiates(make):
    model = make().double()
    rollout = Sampler((1,), pad_id=2)(model, PADDED, uniforms(6, 7, 0))
    torch.testing.assert_close(rollout.logp, exact_logp(model, rollout), atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_decoders_give_the_logits_of_the_plain_forward_pass(make):
    model = make().double()
    ids = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]])
    attention = torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    tokens = torch.tensor([[7, 8], [9, 10], [11, 12]])
    decoders = [
        decoding.make_decoder(model, 3), captured.StaticDecoder(model, 3), decoding.CachedDecoder(model),
        decoding.PrefixDecoder(model),
    ]  # fmt: skip
    assert make is not gpt2 or isinstance(decoders[0], decoding.GPT2Decoder)
    with torch.no_grad():
        found = [torch.stack([d.start(ids, attention), *(d.next(t) for t in tokens)]) for d in decoders]
    for other in found[:-1]:
        torch.testing.assert_close(other, found[-1], atol=1e-12, rtol=0)


@pytest.mark.parametrize("make", [gpt2, llama])
def test_the_decoder_in_place_keeps_what_autocast_gives_it(make):
    """Under autocast keys and values can come in two types."""
    model, tokens = make(), torch.tensor([[7, 8], [9, 10], [11, 12]])
    ids, attention = torch.tensor([[0, 0, 5, 6], [3, 4, 5, 6]]), torch.tensor([[0, 0, 1, 1], [1, 1, 1, 1]])
    found = []
    for d in (captured.StaticDecoder(model, 3), decoding.CachedDecoder(model)):
        with torch.no_grad(), precision("bfloat16", torch.device("cpu")):
            found.append(torch.stack([d.start(ids, attention), *(d.next(t) for t in tokens)]))
    assert found[0].dtype == found[1].dtype == torch.bfloat16
    torch.testing.assert_close(*found, atol=0.02, rtol=0.02)


@pytest.mark.parametrize(
    ("make", "can"),
    [(gpt2, True), (llama, True), (flash, False), (sliding, False),
     (experts, False), (alibi, False)],
)  # fmt: skip
def test_only_models_that_look_at_all_of_the_past_by_position_are_captured(make, can):
    assert captured.can_stay_in_place(make()) is can


def test_a_row_alone_equals_the_row_in_a_batch():
    model, u = gpt2().double(), uniforms(6, 7, 0)
    sampler = Sampler((1,), pad_id=2)
    whole = sampler(model, PADDED, u)
    for i, prompt in enumerate(PADDED):
        alone = sampler(model, [prompt], u[i : i + 1])
        assert alone.completion_ids()[0] == whole.completion_ids()[i]
        n = int(alone.lengths)
        torch.testing.assert_close(alone.logp[0, :n], whole.logp[i, :n], atol=1e-12, rtol=0)


def test_masks_come_from_lengths_even_when_padding_is_a_stop_id_and_a_prompt_holds_it():
    prompts = [Prompt((1, 3), None), Prompt((4, 1, 5), None)]
    rollout = Sampler((1, 7, 9), pad_id=1)(gpt2(), prompts * 20, uniforms(40, 8, 3))
    for ids, n, ended, mask in zip(
        rollout.completions.tolist(), rollout.lengths.tolist(), rollout.ended.tolist(), rollout.mask.tolist(), strict=True
    ):
        stops = [t for t, token in enumerate(ids) if token in (1, 7, 9)]
        first = stops[0] + 1 if stops and stops[0] < n else None
        assert ended == (first is not None)
        assert n == (first if ended else 8)
        assert mask == [1.0] * n + [0.0] * (len(ids) - n)
    assert rollout.attention[:, :3].sum(1).tolist() == [2, 3] * 20
    assert {ids[-1] for ids, e in zip(rollout.completion_ids(), rollout.ended, strict=True) if e} == {1, 7, 9}
    last = rollout.ids[torch.arange(40), rollout.last]
    assert [ids[-1] for ids in rollout.completion_ids()] == last.tolist()


def test_inverse_cdf_inverts_the_distribution_function():
    logits = torch.tensor([0.1, 0.2, 0.3, 0.4], dtype=torch.double).log().expand(5, 4)
    u = torch.tensor([0.0, 0.0999, 0.1001, 0.5999, 0.9999], dtype=torch.double)
    token, logp = inverse_cdf(logits, u)
    assert token.tolist() == [0, 0, 1, 2, 3]
    torch.testing.assert_close(logp.exp(), torch.tensor([0.1, 0.1, 0.2, 0.3, 0.4], dtype=torch.double))


def test_a_token_of_probability_zero_is_never_drawn():
    logits = torch.tensor([[-math.inf, 0.0, -math.inf, 0.0, -math.inf]])
    u = torch.tensor([0.0, 0.5, math.nextafter(1.0, 0.0)], dtype=torch.double)  # the last one is 1.0 in 32 bits
    token, _ = inverse_cdf(logits.expand(3, 5), u)
    assert token.tolist() == [1, 3, 3]


def test_samples_follow_the_law_and_so_do_those_of_transformers_generate():
    model, n = gpt2(vocab_size=6, eos_token_id=None, pad_token_id=0, bos_token_id=None), 6000
    prompt = Prompt((3, 4), None)
    law = model(torch.tensor([[3, 4]])).logits[0, -1].softmax(-1).detach()
    first, counts = None, []
    ours = Sampler((), 0)(model, [prompt] * n, uniforms(n, 2, 5)).completions
    torch.manual_seed(0)
    theirs = model.generate(
        torch.tensor([[3, 4]] * n), attention_mask=torch.ones(n, 2, dtype=torch.long), do_sample=True, max_new_tokens=2,
        top_k=0, top_p=1.0, pad_token_id=0,
    )[:, 2:]  # fmt: skip
    after = torch.stack([model(torch.tensor([[3, 4, i]])).logits[0, -1].softmax(-1).detach() for i in range(6)])
    joint = (law[:, None] * after).reshape(-1)
    for first in (ours, theirs):
        counts = torch.bincount(first[:, 0] * 6 + first[:, 1], minlength=36) / n
        error = (counts - joint) / (joint * (1 - joint) / n).sqrt()
        assert error.abs().max() < 4.5


def test_temperature_is_part_of_the_law():
    model = gpt2().double()
    rollout = Sampler((1,), 2, temperature=0.7)(model, PADDED, uniforms(6, 5, 0))
    logp = completion_logits(model, rollout, temperature=0.7).log_softmax(-1)
    logp = logp.gather(-1, rollout.completions[..., None])[..., 0] * rollout.mask
    torch.testing.assert_close(rollout.logp, logp, atol=1e-12, rtol=0)


def test_prompts_are_drawn_pass_by_pass_as_a_function_of_seed_and_step():
    prompts = as_prompts([[i] for i in range(7)])
    drawn = [p.ids[0] for step in range(7) for p in prompts_of(prompts, 3, seed=1, step=step)]
    assert sorted(drawn[:7]) == sorted(drawn[7:14]) == sorted(drawn[14:]) == list(range(7))
    assert [p.ids[0] for p in prompts_of(prompts, 3, seed=1, step=4)] == drawn[12:15]
    assert drawn[:7] != [p.ids[0] for step in range(7) for p in prompts_of(prompts, 3, seed=2, step=step)][:7]


def test_uniforms_are_a_function_of_their_stream():
    assert torch.equal(uniforms(3, 4, 1, 2), uniforms(3, 4, 1, 2))
    assert not torch.equal(uniforms(3, 4, 1, 2), uniforms(3, 4, 2, 1))
    values = uniforms(1000, 50, 7).numpy()
    assert abs(values.mean() - 0.5) < 4.5 * np.sqrt(1 / 12 / values.size)


def test_adapters_are_in_the_law_that_samples():
    from llm_models import stirred

    from bilevel_rl.llm.roles.backend import LoraRoles

    roles = stirred(LoraRoles(gpt2().double()))
    laws = {}
    for role in ("policy", "policy_l", "reference"):
        with roles.model(role) as model:
            rollout = Sampler((1,), 2)(model, PADDED, uniforms(6, 7, 0))
            torch.testing.assert_close(rollout.logp, exact_logp(model, rollout).detach(), atol=1e-12, rtol=0)
            laws[role] = completion_logits(model, rollout).detach()[:, 0]
    assert (laws["policy"] - laws["policy_l"]).abs().max() > 1e-2
    assert (laws["policy"] - laws["reference"]).abs().max() > 1e-2


class Observing:
    """A generator whose environment answers each token of the policy's with a token of its own."""

    def __init__(self, inner, answer):
        self.inner, self.answer = inner, answer

    def __call__(self, model, prompts, u):
        drawn = self.inner(model, prompts, u[:, ::2])
        n, t = drawn.completions.shape
        ids, attention = pad_prompts(prompts, 2)
        both = torch.stack([drawn.completions, torch.full((n, t), self.answer)], 2).flatten(1)[:, :-1]
        given = (torch.arange(both.shape[1]) % 2 == 1).expand(n, -1)
        lengths = 2 * drawn.lengths - 1
        both = torch.where(torch.arange(both.shape[1]) < lengths[:, None], both, 2)
        logp = torch.zeros_like(both, dtype=u.dtype)  # the trainer scores the rows itself
        return assemble(prompts, ids, attention, both, lengths, drawn.ended, logp, given=given)


def test_given_tokens_are_read_and_are_no_ones_choice():
    made = trainer(method="plain", reward=gold, steps=2, max_new_tokens=7, recipe="grpo")
    made.generator = Observing(Sampler((1,), 2), answer=7)
    history = made.train()
    rows = made.last[0].rows
    sampled = rows.mask.bool()
    real = rows.real.bool()
    assert (rows.completions[real & ~sampled] == 7).all()
    assert (real & ~sampled).any()
    assert history[-1]["samples"] == history[0]["samples"] + int(sampled.sum())
    assert not made.last[0].logp[~sampled].any()
    assert not made.last[0].kl[~sampled].any()
    # and the models read them: with other answers the next tokens have another law
    logits = completion_logits(gpt2(), rows)
    other = dataclasses.replace(rows, ids=torch.where(rows.ids == 7, 8, rows.ids))
    assert (completion_logits(gpt2(), other) - logits).abs().max() > 1e-3
    # a gradient of the tokens' own law, observations fixed
    part = rows.rows(torch.tensor([1, 3]))
    assert torch.equal(part.mask, rows.mask[[1, 3]])
    wide = widen(rows, rows.width + 2, rows.horizon + 1, 2)
    assert torch.equal(wide.mask[:, : rows.horizon], rows.mask)


def test_what_was_found_while_sampling_is_gathered_from_every_process():
    class Two:
        """The first of two processes, which knows what the second one sends."""

        count, theirs = 2, 5

        def __init__(self):
            self.sent = []

        def largest(self, value):
            return max(value, self.theirs)

        def gather(self, value):
            assert value.dtype != torch.bool  # not every backend sends it
            self.sent.append(value)
            return torch.cat([value, value])

    mine = Sampler((1,), pad_id=2)(gpt2(), PADDED[:2], uniforms(2, 3, 0))
    extras = {"probe": torch.rand(2, 3), "known": torch.tensor([True, False]), "state": torch.rand(2, 3, 4)}
    prompts = PADDED[:2] * 2
    whole = gather(Two(), dataclasses.replace(mine, extras=extras), prompts, 2, lambda rows: [""] * rows.size)
    assert whole.horizon == 5
    for half in (whole.rows(slice(0, 2)), whole.rows(slice(2, 4))):
        assert torch.equal(half.extras["known"], extras["known"])
        assert torch.equal(half.extras["probe"], torch.nn.functional.pad(extras["probe"], (0, 2)))
        assert half.extras["state"].shape == (2, 5, 4)
        assert torch.equal(half.extras["state"][:, :3], extras["state"])


def test_a_row_that_ends_with_a_given_token_is_refused():
    one = torch.ones(1, 1, dtype=torch.long)
    with pytest.raises(InvalidProblem, match="completion 0: got a last token that was given"):
        assemble([Prompt((3,), "")], 3 * one, one, torch.tensor([[5, 6]]), torch.tensor([2]), torch.tensor([True]),
                 torch.zeros(1, 2), given=torch.tensor([[False, True]]))  # fmt: skip
