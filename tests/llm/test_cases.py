"""Faults that trainers of language models are known for, each with its right answer and the case next door."""

from __future__ import annotations

import copy
import json
import logging
import sys

import pytest
import torch
from llm_models import gpt2, llama, stirred, trainer
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    BertConfig,
    BertForSequenceClassification,
    BloomConfig,
    BloomForSequenceClassification,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    GPT2Config,
    GPT2ForSequenceClassification,
    MistralConfig,
    MistralForSequenceClassification,
    ModernBertConfig,
    ModernBertForSequenceClassification,
    RobertaConfig,
    RobertaForSequenceClassification,
)  # fmt: skip

from bilevel_rl.errors import InvalidConfig, InvalidProblem, MissingDependency
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data import rows as data_rows
from bilevel_rl.llm.data.preferences import answer_ids, as_pairs
from bilevel_rl.llm.data.prompts import Prompt, as_prompts
from bilevel_rl.llm.data.templates import with_text_options
from bilevel_rl.llm.forward import context, without
from bilevel_rl.llm.judges.asking import choose_pairs
from bilevel_rl.llm.judges.builtin import ClassifierScore, ScoreJudge
from bilevel_rl.llm.judges.by_name import make_gold, make_judge
from bilevel_rl.llm.loading import classifier_rows, label_probabilities, label_scores
from bilevel_rl.llm.rewards.functions import call_reward_function
from bilevel_rl.llm.rewards.loading import load_reward
from bilevel_rl.llm.rewards.models import ClassifierReward, WeightedRewards
from bilevel_rl.llm.roles.policy import token_statistics
from bilevel_rl.llm.sampling.rollout import from_pairs
from bilevel_rl.llm.sampling.sampler import Sampler, uniforms
from bilevel_rl.llm.setup import load_policy, reward_functions
from bilevel_rl.llm.tasks.pretrain import train_tokenizer

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ROWS = [(Prompt((3, 4, 5, 6, 7, 8, 9), "a"), (6, 7, 5)), (Prompt((8,), "b"), (9,)), (Prompt((3, 4), "c"), (11, 12, 5, 2))]
TEXTS = ["the sky is blue", "my cat", "rain", "the rain on my cat is grey and wet"]
TALK = [{"role": "user", "content": "my cat"}]


@pytest.fixture(scope="module")
def tokenizer():
    return train_tokenizer(TEXTS * 5, 300)


@pytest.fixture
def chat(tokenizer):
    own = copy.deepcopy(tokenizer)
    own.add_special_tokens({"additional_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    own.eos_token = "<|im_end|>"
    own.chat_template = CHATML
    return own


def sized(tokenizer, extra=0, **changes):
    """A GPT-2 whose vocabulary is the tokenizer's, with `extra` rows that no token has."""
    size = len(tokenizer) + extra
    ids = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    return gpt2(vocab_size=size, pad_token_id=tokenizer.pad_token_id, **ids, **changes)


def classifier(tokenizer, labels, seed=0, **changes):
    torch.manual_seed(seed)
    config = GPT2Config(vocab_size=len(tokenizer), n_positions=32, n_embd=16, n_layer=1, n_head=2, num_labels=labels,
                        initializer_range=0.5, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
                        pad_token_id=tokenizer.pad_token_id, **changes)  # fmt: skip
    return GPT2ForSequenceClassification(config).eval()


# -- classifiers ---------------------------------------------------------------------------------------------


def test_with_one_label_the_logit_is_the_score(tokenizer):
    score = ClassifierScore(classifier(tokenizer, 1), tokenizer)
    found = score(["", ""], ["the sky is blue", "my cat"])
    rows = [torch.tensor([row]) for row in classifier_rows(tokenizer, ["the sky is blue", "my cat"], 32, begin=False)]
    with torch.no_grad():
        logits = [float(score.model(row).logits[0, 0]) for row in rows]
    assert found == pytest.approx(logits, abs=1e-5)
    assert abs(found[0] - found[1]) > 1e-3
    assert ScoreJudge(score)(["", ""], [TEXTS[:2], TEXTS[1::-1]]) in ([0, 1], [1, 0])
    with pytest.raises(InvalidConfig, match="a model with one label"):
        label_probabilities(score.model, tokenizer, ["rain"])


def test_labels_that_can_hold_together_are_not_put_through_one_softmax(tokenizer):
    model = classifier(tokenizer, 3, problem_type="multi_label_classification")
    several, exclusive = label_scores(model, tokenizer, TEXTS), label_probabilities(model, tokenizer, TEXTS)
    assert exclusive.sum(1) == pytest.approx([1.0] * 4)
    assert (abs(several.sum(1) - 1) > 1e-3).all()
    model.config.problem_type = "regression"
    raw = torch.tensor(label_scores(model, tokenizer, TEXTS))
    torch.testing.assert_close(raw.sigmoid(), torch.tensor(several))


def tiny(kind, config, **changes):
    torch.manual_seed(0)
    options = {"vocab_size": 24, "num_labels": 1, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2}
    return kind(config(**options | {"initializer_range": 0.5} | changes)).eval()


SMALL = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
ENCODERS = {
    "bert": lambda: tiny(BertForSequenceClassification, BertConfig, **SMALL),
    "distilbert": lambda: tiny(DistilBertForSequenceClassification, DistilBertConfig, dim=16, n_layers=2, n_heads=2,
                               hidden_dim=16),
    "roberta": lambda: tiny(RobertaForSequenceClassification, RobertaConfig, **SMALL),
    "modernbert": lambda: tiny(ModernBertForSequenceClassification, ModernBertConfig, local_attention=4,
                               global_attn_every_n_layers=2, **SMALL),
    "bloom": lambda: tiny(BloomForSequenceClassification, BloomConfig, hidden_size=16, n_layer=2, n_head=2),
    "mistral": lambda: tiny(MistralForSequenceClassification, MistralConfig, sliding_window=4, num_key_value_heads=1,
                            head_dim=8, **SMALL),
    "gpt2": lambda: tiny(GPT2ForSequenceClassification, GPT2Config, n_embd=16, n_layer=2, n_head=2),
}  # fmt: skip


@pytest.mark.parametrize("name", ENCODERS)
def test_the_score_of_a_row_does_not_depend_on_its_neighbours(name):
    reward = ClassifierReward(ENCODERS[name]())
    with torch.no_grad():
        whole = reward(from_pairs(ROWS, pad_id=2))
        alone = torch.cat([reward(from_pairs([row], pad_id=2)) for row in ROWS])
        plain = []
        for prompt, completion in ROWS:  # as transformers' own tools would: no padding at all
            ids = torch.tensor([[*prompt.ids, *completion]])
            plain.append(reward.model(input_ids=ids).logits[0, 0])
    torch.testing.assert_close(whole, alone, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(whole, torch.stack(plain), atol=1e-5, rtol=1e-4)
    assert whole.std() > 1e-3


def test_what_does_not_fit_a_judge_is_cut_at_the_beginning_of_the_prompt(tokenizer, caplog):
    model = classifier(tokenizer, 2)
    score = ClassifierScore(model, tokenizer)
    prompt = "the sky is blue " * 20
    with caplog.at_level(logging.WARNING):
        good, bad = score([prompt, prompt], ["my cat", "rain"])
    assert good != bad
    assert "2 of 2 texts are longer than the classifier's 32 tokens: their beginning is cut" in caplog.text
    row = classifier_rows(tokenizer, [prompt + "my cat"], 12)[0]
    assert len(row) == 12
    assert (row[0], row[-1]) == (tokenizer.bos_token_id, tokenizer.eos_token_id)
    assert tokenizer.decode(row[1:-1]).endswith("my cat")


def test_a_reward_model_whose_context_is_too_short_is_refused_before_training():
    reward = tiny(BertForSequenceClassification, BertConfig, max_position_embeddings=8, **SMALL)
    with pytest.raises(InvalidConfig, match="context holds 8 tokens; the longest prompt and completion have 9"):
        trainer(reward=reward)
    assert context(tiny(RobertaForSequenceClassification, RobertaConfig, max_position_embeddings=8, **SMALL)) == 6
    trainer(reward=tiny(BertForSequenceClassification, BertConfig, max_position_embeddings=9, **SMALL))


# -- a reward model with a tokenizer of its own --------------------------------------------------------------


def test_a_reward_model_of_another_tokenizer_reads_the_text(tokenizer, tmp_path):
    other = train_tokenizer(["blue rain on a grey mat, wet and cold"] * 5, 280)
    classifier(other, 1).save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    reward = load_reward(tmp_path, tokenizer)
    assert reward.tokenizer is not None
    rows = [(as_prompts(["the sky"], tokenizer)[0], answer_ids("", " is blue", tokenizer, [tokenizer.eos_token_id]))]
    rollout = from_pairs(rows, pad_id=0, tokenizer=tokenizer)
    ids = [*other("the sky is blue")["input_ids"], other.eos_token_id]
    with torch.no_grad():
        expected = reward.model(torch.tensor([ids])).logits[:, 0]
        torch.testing.assert_close(reward(rollout), expected)
    assert load_reward(tmp_path, other).tokenizer is None
    small = tiny(BertForSequenceClassification, BertConfig, **SMALL)
    with pytest.raises(InvalidConfig, match="they have other tokenizers"):
        trainer(sized(tokenizer), ["the sky"], tokenizer=tokenizer, reward=small, prompts_per_step=1, pairs_per_step=2,
                stop_ids=[], objective="gold", group=2)  # fmt: skip


def test_a_reward_with_two_labels_is_refused_and_a_missing_head_starts_at_zero(tokenizer, tmp_path, caplog):
    classifier(tokenizer, 2).save_pretrained(tmp_path / "two")
    with pytest.raises(InvalidConfig, match=r"a classifier with 2 labels \(LABEL_0, LABEL_1\); a reward model has one"):
        load_reward(tmp_path / "two")
    gpt2().save_pretrained(tmp_path / "policy")
    with caplog.at_level(logging.WARNING):
        reward = load_reward(tmp_path / "policy")
    assert "has no score.weight: it starts at zero" in caplog.text
    assert not reward.model.score.weight.any()


# -- where a run starts and what it exports ------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("backend", ["full", "lora"])
@pytest.mark.parametrize("given", ["folder", "object"])
def test_a_run_starts_where_its_adapters_ended(given, backend, tmp_path):
    import peft

    first = trainer(llama(), backend="lora")
    stirred(first.roles)
    first.export_policy(tmp_path / "first")
    rollout = from_pairs([(Prompt((3, 4, 5), "a"), (6, 7, 1)), (Prompt((8,), "b"), (9, 10))], pad_id=2)
    with torch.no_grad():
        ended, bare = first.roles.logits("policy", rollout), first.roles.logits("reference", rollout)
    start = str(tmp_path / "first")
    policy = load_policy(Config(), start) if given == "folder" else peft.AutoPeftModelForCausalLM.from_pretrained(start)
    second = trainer(policy, backend=backend)
    close = {"atol": 1e-5, "rtol": 1e-4}
    with torch.no_grad():
        torch.testing.assert_close(second.roles.logits("policy", rollout), ended, **close)
        torch.testing.assert_close(second.roles.logits("reference", rollout), ended, **close)
    assert (ended - bare).abs().max() > 0.1
    stirred(second.roles)
    second.export_policy(tmp_path / "second")
    kind = AutoModelForCausalLM if backend == "full" else peft.AutoPeftModelForCausalLM
    loaded = kind.from_pretrained(tmp_path / "second").eval()
    with torch.no_grad():
        ids = torch.tensor([[3, 4, 5, 6, 7, 1]])
        theirs = loaded(input_ids=ids).logits[0, 2:5]
        torch.testing.assert_close(theirs, second.roles.logits("policy", rollout)[0], **close)


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_modules_that_adapters_save_whole_are_part_of_the_start():
    import peft

    config = peft.LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"], modules_to_save=["lm_head"])
    adapted = peft.get_peft_model(llama(), config)
    with torch.no_grad():
        for name, p in adapted.named_parameters():
            if "lora_B" in name or "modules_to_save" in name:
                p.add_(0.3)
        ids = torch.tensor([[3, 4, 5]])
        ended = adapted(input_ids=ids).logits
        bare = llama()(input_ids=ids).logits
        made = trainer(adapted, estimator="tilted")
        torch.testing.assert_close(made.roles.modules["policy"](input_ids=ids).logits, ended, atol=1e-5, rtol=1e-4)
    assert (ended - bare).abs().max() > 0.1


def test_a_model_of_16_bits_is_exported_in_them(tmp_path):
    made = trainer(gpt2().to(torch.bfloat16), estimator="tilted")
    assert made.roles.parameters("policy")["transformer.wpe.weight"].dtype == torch.float32
    made.export_policy(tmp_path / "policy")
    made.export_reward(tmp_path / "reward")
    policy = AutoModelForCausalLM.from_pretrained(tmp_path / "policy")
    reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward")
    assert policy.dtype == reward.dtype == torch.bfloat16
    first = {name: p.to(torch.bfloat16) for name, p in made.roles.parameters("policy").items()}
    assert all(torch.equal(p, first[name]) for name, p in policy.named_parameters())
    trainer(estimator="tilted").export_policy(tmp_path / "fine")
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "fine").dtype == torch.float32


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_exported_adapters_name_their_base_absolutely(tmp_path, monkeypatch):
    llama().save_pretrained(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    trainer(load_policy(Config(policy="base"), None), backend="lora").export_policy("out")
    header = json.loads((tmp_path / "out" / "adapter_config.json").read_text())
    assert header["base_model_name_or_path"] == str(tmp_path / "base")


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_that_cannot_be_merged_are_refused():
    import peft

    config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    with pytest.raises(InvalidConfig, match="adapters that can't be merged"):
        trainer(peft.get_peft_model(llama(), config))


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
def test_adapters_on_a_head_that_is_tied_to_the_embedding_are_warned_of(caplog):
    with caplog.at_level(logging.WARNING):
        trainer(gpt2(), backend="lora", lora_targets=["c_attn", "lm_head"])
    assert "lm_head shares its weight with the embedding" in caplog.text
    caplog.clear()
    trainer(gpt2(), backend="lora", lora_targets=["c_attn"])
    assert "shares its weight" not in caplog.text


@pytest.mark.parametrize("pad", ["end", "none", "own"])
def test_exported_rewards_agree_with_trained_ones_whatever_the_padding(tokenizer, pad, tmp_path):
    own = copy.deepcopy(tokenizer)
    own.pad_token = {"end": own.eos_token, "none": None, "own": "<|pad|>"}[pad]
    if pad == "own":
        own.add_special_tokens({"pad_token": "<|pad|>"})
    made = trainer(sized(own), ["the sky", "my cat"], tokenizer=own, stop_ids=[], prompts_per_step=2, group=4,
                   pairs_per_step=2, objective="gold", gold=lambda completions, **_: [0.0] * len(completions))  # fmt: skip
    stirred(made.roles)
    end = own.eos_token_id
    prompts = as_prompts(["the sky", "rain", "my cat"], own)
    answers = [(*own(" is blue", add_special_tokens=False)["input_ids"], end), (end,), (5, 6, 7)]
    rollout = from_pairs(list(zip(prompts, answers, strict=True)), pad_id=0)
    with torch.no_grad():
        trained = made.roles.rewards(rollout)
    made.export_reward(tmp_path)
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path).eval()
    pad_id = loaded.config.pad_token_id
    rows = [[*p.ids, *a] for p, a in zip(prompts, answers, strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    with torch.no_grad():
        torch.testing.assert_close(loaded(ids, attention_mask=mask).logits[:, 0], trained, atol=1e-5, rtol=1e-4)
        for i, row in enumerate(rows):
            alone = loaded(torch.tensor([row])).logits[0, 0]
            torch.testing.assert_close(alone, trained[i], atol=1e-5, rtol=1e-4)


def test_a_reference_that_is_the_policy_stays_where_it_is():
    policy = gpt2()
    made = trainer(policy, reference=policy, steps=4, alpha=0.1)
    before = {k: v.clone() for k, v in made.roles.reference.state_dict().items()}
    history = made.train()
    assert history[-1]["kl"] > 1e-4
    assert all(torch.equal(before[k], v) for k, v in made.roles.reference.state_dict().items())
    head = GPT2ForSequenceClassification(policy.config)
    head.config.num_labels, head.transformer = 1, policy.transformer  # the case next door: a reward on the policy's body
    head.score = torch.nn.Linear(16, 1, bias=False)
    made = trainer(policy, reward=head)
    assert not {id(p) for p in made.roles.modules["policy"].parameters()} & {id(p) for p in made.roles.reward.parameters()}


# -- texts, templates, columns -------------------------------------------------------------------------------


def test_stored_conversations_are_rendered_by_the_template_and_end_with_its_own_token(chat):
    eos = [chat.eos_token_id, 0]
    good, bad = ([{"role": "assistant", "content": text}] for text in ("is blue", "rain"))
    ((prompt, chosen, rejected),) = as_pairs(
        [{"prompt": TALK, "chosen": good, "rejected": bad}], chat, 64, 32, None, eos
    )
    assert chat.decode(prompt.ids) == "<|im_start|>user\nmy cat<|im_end|>\n<|im_start|>assistant\n"
    assert (chat.decode(chosen), chat.decode(rejected)) == ("is blue<|im_end|>", "rain<|im_end|>")
    # text as an answer to a conversation is the same
    assert answer_ids(TALK, "is blue", chat, eos) == chosen
    several = [*good, {"role": "user", "content": "and?"}, {"role": "assistant", "content": "a mat"}]
    assert chat.decode(answer_ids(TALK, several, chat, eos)) == (
        "is blue<|im_end|>\n<|im_start|>user\nand?<|im_end|>\n<|im_start|>assistant\na mat<|im_end|>"
    )
    # what load_preferences returns is taken too
    stored = data_rows.load_preferences([{"prompt": "my cat", "chosen": " purrs", "rejected": " hisses"}])
    (again,) = as_pairs(stored, chat, 64, 32, None, eos)
    assert chat.decode(again[1]) == " purrs<|im_end|>"


def test_the_tokenizers_own_end_closes_a_completion_not_the_lowest_one(chat):
    assert answer_ids("my", " cat", chat, [0, chat.eos_token_id])[-1] == chat.eos_token_id
    chat.chat_template = "{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    with pytest.raises(InvalidProblem, match="the start of the conversation"):
        answer_ids(TALK, "rain", chat, [chat.eos_token_id])
    with pytest.raises(InvalidProblem, match="2 messages after a prompt that is text"):
        answer_ids("my cat", [*TALK, *TALK], chat, [chat.eos_token_id])


def test_a_conversation_that_ends_with_the_assistants_words_goes_on_with_them(chat):
    said = [*TALK, {"role": "assistant", "content": "is"}]
    (prompt,) = as_prompts([said], chat)
    assert chat.decode(prompt.ids) == "<|im_start|>user\nmy cat<|im_end|>\n<|im_start|>assistant\nis"
    assert chat.decode(answer_ids(said, " blue", chat, [chat.eos_token_id])) == " blue<|im_end|>"


def test_options_reach_the_template_and_special_tokens_stay_where_that_is_asked(chat):
    chat.chat_template = CHATML.replace("assistant\n{%", "assistant\n{% if not thinks %}<|im_end|>{% endif %}{%")
    assert chat.chat_template != CHATML
    (as_it_is,) = as_prompts([TALK], chat)
    options = {"thinks": True, "skip_special_tokens": False}
    (asked,) = as_prompts([TALK], with_text_options(chat, options))
    assert chat.decode(as_it_is.ids).endswith("assistant\n<|im_end|>")
    assert chat.decode(asked.ids).endswith("assistant\n")
    end = chat.eos_token_id
    rollout = from_pairs([(Prompt((3,), "a"), (5, end))], 0, tokenizer=chat)
    kept = from_pairs([(Prompt((3,), "a"), (5, end))], 0, tokenizer=with_text_options(chat, options))
    assert kept.texts == [rollout.texts[0] + "<|im_end|>"]
    assert with_text_options(chat, {}) is chat
    assert not hasattr(chat, "text_options")
    for wrong in ({"tokenize": False}, {"skip_special_tokens": "no"}):
        with pytest.raises(InvalidConfig, match=r"config\.texts: got "):
            with_text_options(chat, wrong)
    made = trainer(sized(chat), [TALK], tokenizer=chat, texts=options, stop_ids=[], prompts_per_step=1, pairs_per_step=2)
    assert made.prompts[0].ids == asked.ids


def test_a_template_that_refuses_a_role_is_quoted_with_the_row(chat):
    chat.chat_template = "{{ raise_exception('System role not supported') }}"
    with pytest.raises(InvalidProblem, match=r"prompts\[1\]: got .*\(System role not supported\)"):
        as_prompts(["rain", [{"role": "system", "content": "be kind"}]], chat)


def test_text_that_begins_with_the_begin_token_gets_no_second_one(chat, caplog):
    class Adds:
        bos_token_id, bos_token = 0, "<s>"

        def __call__(self, text):
            return {"input_ids": [0, *([0] if text.startswith("<s>") else []), 7]}

    with caplog.at_level(logging.WARNING):
        assert [p.ids for p in as_prompts(["<s>x"], Adds())] == [(0, 7)]
    assert "prompts[0] begins with two <s>" in caplog.text
    assert [p.ids for p in as_prompts(["x"], Adds())] == [(0, 7)]


def test_every_row_hands_over_its_own_columns_whatever_was_drawn():
    rows = [{"prompt": [1]}, {"prompt": [2], "answer": "7"}, {"prompt": [3], "level": 2}]
    prompts = as_prompts(rows)
    seen = {}

    def f(completions, answer, level, **_):
        seen["answer"], seen["level"] = answer, level
        return [0.0] * len(completions)

    call_reward_function(f, from_pairs([(prompts[0], (5,)), (prompts[1], (6,))], pad_id=0))
    assert seen == {"answer": [None, "7"], "level": [None, None]}
    talk = {"messages": [*TALK, {"role": "assistant", "content": "x"}], "answer": "9"}
    assert data_rows.load_prompts([talk]) == [{"prompt": TALK, "answer": "9"}]
    with pytest.raises(InvalidProblem, match="the column 'completions'; reward functions are given"):
        as_prompts([{"prompt": [1], "completions": "x"}])


@pytest.mark.parametrize(("what", "left"), [("drop", [(1, 2)]), ("cut", [(1, 2), (4, 5, 6)])])
def test_long_prompts_are_refused_left_out_or_cut_with_a_count(what, left, caplog):
    rows = [[1, 2], [3, 4, 5, 6]]
    with pytest.raises(InvalidProblem, match=r"prompts\[1\]: got 4 tokens"):
        as_prompts(rows, longest=3)
    with caplog.at_level(logging.WARNING):
        assert [p.ids for p in as_prompts(rows, longest=3, long_prompts=what)] == left
    assert "1 of 2 are longer than 3 tokens" in caplog.text


# -- reward functions ----------------------------------------------------------------------------------------


def functions():
    async def later(completions, **_):
        return [2.0] * len(completions)

    def partly(completions, **_):
        return [1.0, None]

    def watching(completions, trainer_state, **_):
        return [float(trainer_state)] * len(completions)

    return later, partly, watching


def test_reward_functions_keep_trls_contract():
    rollout = from_pairs([(Prompt((1,), "a"), (5,)), (Prompt((2,), "b"), (6,))], pad_id=0)
    later, partly, watching = functions()
    assert call_reward_function(later, rollout).tolist() == [2.0, 2.0]
    assert call_reward_function(watching, rollout, state=3).tolist() == [3.0, 3.0]
    assert WeightedRewards([partly, later], [1.0, 0.5])(rollout).tolist() == [2.0, 1.0]  # None does not apply
    assert call_reward_function(lambda **_: torch.tensor([[1.0], [2.0]]), rollout).tolist() == [1.0, 2.0]
    for bad, words in (
        (lambda **_: None, "None for 2 completions; a list with one value for each completion"),
        (lambda **_: 1.0, "1.0 for 2 completions; a list with one value"),
        (lambda **_: ["x", 1.0], "'x' for completion 0; every value must be finite"),
        (lambda completions: [1.0], "TypeError"),
        (lambda **_: 1 / 0, r"ZeroDivisionError \(division by zero\), .*test_cases.py line \d+"),
        (partly, "None for completion 1"),
    ):
        with pytest.raises(InvalidProblem, match=words):
            call_reward_function(bad, rollout, "gold")


# -- laws and pairs ------------------------------------------------------------------------------------------


def test_ids_that_no_text_can_hold_are_never_drawn_and_count_nothing(tokenizer):
    policy = sized(tokenizer, extra=40, n_embd=4, initializer_range=0.01)  # nearly flat: a third of draws would be odd
    made = trainer(policy, ["the sky", "my cat"], tokenizer=tokenizer, stop_ids=[], prompts_per_step=2, group=8,
                   objective="gold", gold=lambda completions, **_: [float(len(c)) for c in completions])  # fmt: skip
    line = made.train()[-1]
    assert int(made.last[0].rows.ids.max()) < len(tokenizer)
    assert all(value == value for value in line.values())
    rollout = made.last[0].rows
    with torch.no_grad():
        law = made.roles.logits("policy", rollout).softmax(-1)
    assert float(law[..., len(tokenizer) :].max()) == 0.0
    torch.testing.assert_close(law.sum(-1), torch.ones(law.shape[:2]))


def test_logits_of_minus_infinity_contribute_nothing():
    torch.manual_seed(0)
    barred = torch.tensor([False, True, False, False, True])
    small, other = (torch.randn(3, 3, dtype=torch.float64, requires_grad=True) for _ in range(2))
    token = torch.tensor([0, 1, 2])

    def spread(z):
        return without(torch.zeros(3, 5, dtype=z.dtype).index_copy(1, torch.tensor([0, 2, 3]), z), barred)

    for reference in (None, other.detach().log_softmax(-1)):
        plain = token_statistics(small, token, reference)
        whole = None if reference is None else spread(other.detach()).log_softmax(-1)
        found = token_statistics(spread(small), torch.tensor([0, 2, 3])[token], whole)
        for a, b in zip(plain, found, strict=True):
            torch.testing.assert_close(a, b)
        gradients = [torch.autograd.grad(sum((i + 1) * v.sum() for i, v in enumerate(s)), small)[0] for s in (plain, found)]
        torch.testing.assert_close(*gradients)
    model, u = gpt2(), uniforms(64, 6, 0)
    unheld = torch.zeros(24, dtype=torch.bool)
    unheld[[5, 20]] = True
    drawn = Sampler((), 2, unheld=unheld)(model, [Prompt((3,), "")] * 64, u).completions
    assert not torch.isin(drawn, torch.tensor([5, 20])).any()


def test_pairs_of_equal_completions_cost_no_label():
    group = torch.tensor([0] * 4 + [1] * 4)
    texts = ["a", "a", "a", "a", "b", "c", "d", "e"]
    pairs = choose_pairs(group, 10, 0, 0, texts)
    assert len(pairs) == 2
    assert all(texts[i] != texts[j] for i, j in pairs.tolist())
    assert choose_pairs(group, 10, 0, 0).shape == (4, 2)


# -- folders, budgets, sources -------------------------------------------------------------------------------


def test_a_run_is_not_wiped_by_the_next_one(tmp_path):
    out = str(tmp_path)
    first = trainer(out=out, steps=2)
    first.train()
    kept = (tmp_path / "metrics.jsonl").read_text()
    with pytest.raises(InvalidConfig, match=r"a folder that holds a run; a new run would wipe it\. Continue it"):
        trainer(out=out, steps=4).train()
    assert (tmp_path / "metrics.jsonl").read_text() == kept
    longer = trainer(out=out, steps=4, resume="auto")
    assert longer.step == 2
    longer.train()
    straight = trainer(steps=4).train()
    assert [line["kl"] for line in longer.history] == [line["kl"] for line in straight]
    assert len(trainer(out=out, steps=1, resume="replace").train()) == 1
    assert len(trainer(out=str(tmp_path / "new"), steps=1, resume="auto").train()) == 1


def test_labels_that_will_not_last_are_told_before_the_run(caplog):
    with caplog.at_level(logging.WARNING):
        trainer(label_budget=8, steps=10)
    assert "8 labels at 4 an iteration last for 2 of 10 iterations; then x stands still" in caplog.text
    caplog.clear()
    trainer(label_budget=40, steps=10)
    trainer(steps=10)
    assert "labels at" not in caplog.text


def test_preferences_that_nothing_reads_are_refused():
    stored = [{"prompt": [3], "chosen": [7], "rejected": [8]}]
    with pytest.raises(InvalidConfig, match="stored preferences; the upper objective reads none"):
        trainer(preferences=stored)
    trainer(preferences=stored, objective={"stored_preference": 1.0, "preference": 0.1})


def test_plain_reinforcement_learning_needs_no_tau():
    made = trainer(method="plain", tau=0.0, reward=gold_of, steps=2)
    assert all(line["tau"] == 0 for line in made.train())
    with pytest.raises(InvalidConfig, match=r"config\.tau\.initial: got 0"):
        trainer(tau=0.0)


def gold_of(completion_ids, trainer_state=None, **_):
    assert trainer_state is None or trainer_state.max_steps == 2
    gold_of.steps = [*getattr(gold_of, "steps", []), getattr(trainer_state, "global_step", None)]
    return [float(ids.count(7)) for ids in completion_ids]


def test_reward_functions_are_told_where_the_run_stands():
    gold_of.steps = []
    trainer(method="plain", reward=gold_of, steps=2).train()
    assert sorted(set(gold_of.steps)) == [0, 1]


# -- judges by name ------------------------------------------------------------------------------------------


@pytest.fixture
def mine(tmp_path, monkeypatch):
    (tmp_path / "mine.py").write_text(
        "def judge(prompts, completions, shuffle_order=True):\n    return [1 for _ in prompts]\n\n\n"
        "def score(prompts, completions, **_):\n    return [float(len(c)) for c in completions]\n\n\n"
        "class Judge:\n    judge = staticmethod(judge)\n"
    )
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    sys.modules.pop("mine", None)


def test_judges_and_scorers_of_ones_own_are_found_in_the_current_folder(mine):
    for name in ("mine:judge", "mine.py:judge", f"{mine}/mine.py:judge"):
        judge, gold = make_judge(name)
        assert judge(["p"], [["a", "b"]]) == [1]
        assert gold is None
    assert make_judge("mine:Judge")[0].judge(["p"], [["a", "b"]]) == [1]
    judge, gold = make_judge("mine:score~inf")
    assert judge(["p"], [["long", "a"]]) == [0]
    assert gold is make_gold("mine:score") or gold(["p"], ["ab"]) == [2.0]
    assert [f.__name__ for f in reward_functions("function:mine.score")] == ["score"]
    assert [f.__name__ for f in reward_functions("mine:score, mine.py:judge")] == ["score", "judge"]
    for wrong, words in (
        ("mine:nosuch", "no 'nosuch' in mine"), ("nosuch_module:judge", "no module named 'nosuch_module'"),
        ("nosuch.py:judge", "no file 'nosuch.py'"), ("builtin:nosuch", "'builtin:nosuch'"),
    ):  # fmt: skip
        with pytest.raises(InvalidConfig, match=words):
            make_judge(wrong)
    (mine / "broken.py").write_text("1 / 0")
    with pytest.raises(InvalidProblem, match="ZeroDivisionError"):
        make_gold("broken.py:score")


def test_a_folder_of_a_judge_may_hold_the_signs_of_label_and_sharpness(tokenizer, tmp_path, monkeypatch):
    for folder in ("jud@ge", "a~b"):
        classifier(tokenizer, 2).save_pretrained(tmp_path / folder)
        tokenizer.save_pretrained(tmp_path / folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    for source, label, sharpness in (
        (f"{tmp_path}/jud@ge@LABEL_0", 0, float("inf")), (f"{tmp_path}/jud@ge", 1, float("inf")),
        ("~/jud@ge@LABEL_0~2.5", 0, 2.5), (f"{tmp_path}/a~b", 1, float("inf")), ("~/a~b~4", 1, 4.0),
    ):  # fmt: skip
        judge, gold = make_judge(source)
        assert (gold.label, judge.sharpness) == (label, sharpness)


def test_vader_scores_english_and_says_what_it_cannot_read(caplog, monkeypatch):
    vader = pytest.importorskip("vaderSentiment.vaderSentiment")
    judge, gold = make_judge("builtin:vader")
    good, bad, negated = gold(["my day was "] * 3, ["wonderful!", "horrible", "not wonderful"])
    assert good > 0.5 > 0 > bad
    assert negated < 0
    assert judge(["x "], [["I hate it", "I love it"]]) == [1]
    assert not caplog.records
    with caplog.at_level(logging.WARNING):
        assert gold([""], ["das ist ein sehr schöner und sonniger Tag"]) == [0.0]
    assert "1 of 1 texts are not English" in caplog.text
    monkeypatch.setattr(vader.SentimentIntensityAnalyzer, "make_lex_dict", lambda self: {})
    with pytest.raises(InvalidConfig, match="an empty lexicon"):
        make_gold("builtin:vader")
    monkeypatch.setitem(sys.modules, "vaderSentiment.vaderSentiment", None)
    with pytest.raises(MissingDependency, match=r"pip install '\.\[vader\]'"):
        make_gold("builtin:vader")
