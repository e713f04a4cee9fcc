"""What bad input gets: one sentence that says where, what was got, what is allowed and what to do, before training."""

from __future__ import annotations

import pytest
import torch
from llm_models import PROMPTS, gpt2, trainer
from transformers import PreTrainedTokenizerFast

from bilevel_rl.errors import BilevelError, InvalidConfig, InvalidProblem
from bilevel_rl.llm.data.prompts import as_prompts
from bilevel_rl.llm.rewards.models import ClassifierReward, WeightedRewards
from bilevel_rl.llm.trainer import BilevelTrainer


def tokenizer(size: int = 20, eos: bool = True) -> PreTrainedTokenizerFast:
    from tokenizers import Tokenizer, models

    words = {"<eos>": 1, "<unk>": 0} | {f"w{i}": i for i in range(2, size)}
    options = {"eos_token": "<eos>"} if eos else {}
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel(words, unk_token="<unk>")), unk_token="<unk>", **options
    )


PAIR = {"prompt": [3], "chosen": [4], "rejected": [5]}
CASES = {
    "no prompts": ({"prompts": []}, "prompts: got none; at least one prompt is needed. Check the data's path."),
    "empty prompt": (
        {"prompts": [[3], []]},
        "prompts[1]: got an empty prompt ([]); a prompt has at least one token. Remove it, or begin every prompt with "
        "the tokenizer's BOS.",
    ),
    "duplicate prompts": (
        {"prompts": [[3], [4], [3]]},
        "prompts[2]: got the same prompt as prompts[0] ([3]); prompts must differ, or one is weighted twice silently. "
        "Remove the duplicate.",
    ),
    "long prompt": (
        {"prompts": [[3] * 9], "max_prompt_tokens": 8},
        "prompts[0]: got 9 tokens; a prompt has at most 8. Shorten or remove it, or raise max_prompt_tokens.",
    ),
    "longer than the context": (
        {"prompts": [[3] * 20], "max_new_tokens": 13},
        "prompts: got a prompt of 20 tokens with max_new_tokens=13; the policy's context holds 32 tokens. Shorten the "
        "prompts or lower max_new_tokens.",
    ),
    "ids outside the vocabulary": (
        {"prompts": [[3], [24]]},
        "prompts[1]: got the token id 24; the policy's vocabulary has 24 ids. Use the tokenizer that belongs to the "
        "policy.",
    ),
    "text without a tokenizer": (
        {"prompts": ["hello"]},
        "prompts[0]: got text without a tokenizer; text needs a tokenizer. Pass tokenizer=, or ids.",
    ),
    "a row without a prompt": (
        {"prompts": [{"text": "a"}]},
        "prompts[0]: got a row with the columns ['text']; a row needs the column 'prompt'. Rename the column.",
    ),
    "a conversation without a template": (
        {"prompts": [[{"role": "user", "content": "hi"}]], "tokenizer": tokenizer()},
        "prompts[0]: got a conversation, and a tokenizer without a chat template; conversations need a chat template. "
        "Set tokenizer.chat_template, or pass plain text.",
    ),
    "a tokenizer without EOS": (
        {"tokenizer": tokenizer(eos=False), "stop_ids": []},
        "tokenizer: got a tokenizer without an EOS token; a completion ends at a stop id. Set tokenizer.eos_token, or "
        "config.stop_ids.",
    ),
    "a vocabulary mismatch": (
        {"tokenizer": tokenizer(30)},
        "tokenizer: got 30 tokens; the policy's vocabulary has 24 ids. Use the tokenizer that belongs to the policy, or "
        "resize the policy's embeddings.",
    ),
    "a stop id outside the vocabulary": (
        {"stop_ids": [99]},
        "config.stop_ids: got 99; the policy's vocabulary has 24 ids. Correct the id.",
    ),
    "no judge": (
        {"judge": None},
        "BilevelTrainer.judge: got nothing; the upper objective needs a pairwise judge. Pass judge=, or choose another "
        "objective.",
    ),
    "no gold": (
        {"gold": None, "objective": "gold"},
        "BilevelTrainer.gold: got nothing; the upper objective needs a gold scorer. Pass gold=, or choose another "
        "objective.",
    ),
    "labels missing": (
        {"objective": "stored_preference"},
        "BilevelTrainer.preferences: got nothing; the upper objective needs stored preference pairs. Pass preferences=, "
        "or choose another objective.",
    ),
    "preference columns": (
        {"objective": "stored_preference", "preferences": [{"prompt": [3], "chosen": [4]}]},
        "preferences[0]: got a row without 'rejected'; a row has the columns prompt, chosen, rejected. Rename the "
        "columns.",
    ),
    "equal completions": (
        {"objective": "stored_preference", "preferences": [PAIR, PAIR | {"chosen": [5]}]},
        "preferences[1]: got completions that are equal or empty; a preference needs two that differ. Remove the row.",
    ),
    "LoRA targets": (
        {"backend": "lora", "lora_targets": ["nothing"]},
        "config.lora_targets: got ['nothing']; at least one module's name must match. Name the linear layers to adapt, "
        "e.g. ['c_attn', 'c_fc', 'c_proj'].",
    ),
    "LoRA with a reference": (
        {"backend": "lora", "reference": gpt2()},
        "BilevelTrainer.reference: got a model, with backend=lora; the reference is the base with its adapters off. "
        "Leave reference out, or use backend=full.",
    ),
    "a number as reward": (
        {"reward": 3},
        "BilevelTrainer.reward: got int; a module, reward functions, a folder or hub id, 'classifier' or 'linear'. "
        "Pass one of these.",
    ),
    "a reward that can't train": (
        {"reward": WeightedRewards([lambda **_: []], [1.0]).requires_grad_(False)},
        "BilevelTrainer.reward: got a module without trained parameters; x is what the upper level moves. Leave "
        "requires_grad on for at least one parameter.",
    ),
    "weights and functions": (None, "WeightedRewards.x0: got 2 weights for 1 functions; one weight for each reward "
                                    "function. Give as many weights as functions."),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_refused_before_training(name):
    options, text = CASES[name]
    with pytest.raises(BilevelError) as caught:
        WeightedRewards([len], [1.0, 2.0]) if options is None else trainer(**options)
    assert str(caught.value) == text
    assert isinstance(caught.value, (InvalidConfig, InvalidProblem))


@pytest.mark.parametrize(("values", "text"), [
    ([1.0], "gold scorer: got 1 values for 16 completions; one value for each completion. Correct the function."),
    ([1.0] * 15 + [float("nan")], "gold scorer: got nan for completion 15; every value must be finite."),
    ([None] + [1.0] * 15, "gold scorer: got None for completion 0; every value must be finite."),
])  # fmt: skip
def test_a_gold_scorer_with_a_bad_answer_is_named(values, text):
    def scorer(**_):
        return values

    with pytest.raises(InvalidProblem) as caught:
        trainer(gold=scorer).iterate(0)
    assert str(caught.value).startswith(text)


def test_no_policy_and_names_that_cannot_be_loaded(tmp_path):
    from bilevel_rl.llm.config import Config

    with pytest.raises(InvalidConfig, match="BilevelTrainer.policy: got nothing"):  # noqa: RUF043
        BilevelTrainer(Config(), prompts=PROMPTS)
    with pytest.raises(InvalidConfig, match="config.policy: got .*nowhere.*"):  # noqa: RUF043
        BilevelTrainer(Config(), str(tmp_path / "nowhere"), prompts=PROMPTS)


def test_weights_that_are_not_safetensors_are_not_read(tmp_path):
    from bilevel_rl.llm.config import Config

    model = gpt2()
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(InvalidConfig, match="config.policy"):  # noqa: RUF043
        BilevelTrainer(Config(), str(tmp_path), prompts=PROMPTS, tokenizer=tokenizer())


def test_a_classifier_of_several_labels_is_no_reward_model():
    from transformers import GPT2Config, GPT2ForSequenceClassification

    model = GPT2ForSequenceClassification(GPT2Config(vocab_size=24, n_embd=8, n_layer=1, n_head=1, num_labels=3))
    with pytest.raises(InvalidConfig, match="a classifier with 3 labels"):
        ClassifierReward(model)


def test_gradient_checkpointing_needs_a_model_that_has_it():
    from llm_instances import BagInstance, BagReward

    problem = BagInstance()
    with pytest.raises(InvalidConfig, match="true with a GRUPolicy; the model does not support it"):
        trainer(
            problem.policy, prompts=[[8]], reward=BagReward(problem.x0), stop_ids=[], gradient_checkpointing=True
        )


def test_prompt_rows_may_be_text_ids_or_mappings():
    rows = as_prompts([{"prompt": [3, 4], "mood": "joy"}, (5,)])
    assert [p.ids for p in rows] == [(3, 4), (5,)]
    assert rows[0].columns == {"mood": "joy"}
    with pytest.raises(InvalidProblem, match="a prompt is text, token ids, or a list of messages"):
        as_prompts([3.0], tokenizer())
