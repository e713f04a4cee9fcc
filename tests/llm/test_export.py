"""What other tools load: transformers, PEFT and TRL read what a run exports and compute what we compute."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from bilevel_rl.errors import InvalidConfig, RunNotFound
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.evaluation import evaluate
from bilevel_rl.llm.export import export, restore
from bilevel_rl.llm.loading import load_language_model, pad_rows
from bilevel_rl.llm.tasks import corpus, pretrain
from bilevel_rl.llm.trainer import BilevelTrainer

# PEFT 0.21 and TRL 1.16 still ask transformers 5 for names that it renames
pytestmark = pytest.mark.filterwarnings(
    "ignore:.*gradient_checkpointing.*:FutureWarning",
    "ignore:.*:DeprecationWarning:trl.*",
    "ignore::UserWarning:trl.*",
)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A tiny language model in a folder."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("base")
    tweets = corpus.make_tweets(300, 0)
    tokenizer = pretrain.train_tokenizer(tweets.texts, 300)
    config = pretrain.LanguageModelConfig(
        vocabulary=300, layers=1, width=16, heads=2, steps=60, batch=16, context=48
    )
    model, _ = pretrain.train_language_model(tweets.texts, tweets.texts[:50], tokenizer, config)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def exclaims(prompts, completions, **columns):
    return [text.count("a") / 10 for text in completions]


def prefers_a(prompts, completions, shuffle_order=True):
    return [int(a.count("a") < b.count("a")) for a, b in completions]


def run(base, out, **keys):
    values = {
        "policy": str(base), "out": str(out), "steps": 3, "prompts_per_step": 4, "group": 2, "pairs_per_step": 2,
        "max_new_tokens": 8, "estimator": "shared", "alpha": 3e-3, "zeta": 3e-3, "samples_every": 1,
    }  # fmt: skip
    trainer = BilevelTrainer(
        Config(**{**values, **keys}), prompts=corpus.make_prompts()[:20], judge=prefers_a, gold=exclaims
    )
    trainer.train()
    return trainer


@pytest.fixture(scope="module", params=["full", "lora"])
def exported(request, base, tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp(request.param)
    trainer = run(base, folder / "run", backend=request.param, alpha=3e-2)
    written = export(restore(folder / "run"), folder / "export")
    return trainer, written, request.param


def texts_of(trainer):
    rollout = trainer.last[0].rows
    return rollout


def test_every_weight_is_safetensors(exported):
    _, written, kind = exported
    assert set(written) == {"policy", "reward"}
    for folder in written.values():
        files = {path.name for path in folder.iterdir()}
        assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
        assert {"README.md", "tokenizer.json"} <= files
    weights = "model.safetensors" if kind == "full" else "adapter_model.safetensors"
    assert (written["policy"] / weights).exists()


def test_transformers_or_peft_computes_our_policy(exported):
    trainer, written, kind = exported
    if kind == "full":
        loaded = AutoModelForCausalLM.from_pretrained(written["policy"])
    else:
        peft = pytest.importorskip("peft")
        loaded = peft.AutoPeftModelForCausalLM.from_pretrained(written["policy"])
    rollout = texts_of(trainer)
    with torch.no_grad():
        theirs = loaded.eval()(
            input_ids=rollout.ids, attention_mask=rollout.attention, position_ids=rollout.positions
        )
        ours = trainer.roles.logits("policy", rollout)
        reference = trainer.roles.logits("reference", rollout)
    theirs = theirs.logits[:, -rollout.horizon - 1 : -1]
    real = rollout.mask.bool()
    assert torch.allclose(theirs[real], ours[real], atol=1e-5)
    assert not torch.allclose(reference[real], ours[real], atol=1e-5)  # it has learned something


def test_transformers_computes_our_reward(exported):
    trainer, written, _ = exported
    loaded = AutoModelForSequenceClassification.from_pretrained(written["reward"]).eval()
    assert loaded.config.num_labels == 1
    rollout = texts_of(trainer)
    rows = [ids[mask.bool()].tolist() for ids, mask in zip(rollout.ids, rollout.attention, strict=True)]
    with torch.no_grad():
        ours = trainer.roles.rewards(rollout)
        alone = torch.cat([loaded(input_ids=torch.tensor([row])).logits[:, 0] for row in rows])
        ids, mask = pad_rows(rows, loaded.config.pad_token_id)
        together = loaded(input_ids=ids, attention_mask=mask).logits[:, 0]
    assert torch.allclose(alone, ours, atol=1e-5)
    assert torch.allclose(together, ours, atol=1e-5)


def test_the_card_has_the_figures_and_says_how_to_load(exported):
    trainer, written, kind = exported
    card = (written["policy"] / "README.md").read_text()
    last = trainer.history[-1]
    assert f"| {last['kl']:.4g} |" in card
    assert f"| {last['gold']:.4g} |" in card
    assert f"library_name: {'peft' if kind == 'lora' else 'transformers'}" in card
    keys = json.loads(card.split("```json")[1].split("```")[0])
    assert keys["steps"] == 3
    assert "out" not in keys


def test_generate_draws_from_our_samplers_distribution(base):
    """First two tokens after a prompt, 4,000 draws each: frequencies of both agree with the exact law."""
    model, tokenizer = load_language_model(base), AutoTokenizer.from_pretrained(base)
    prompt = torch.tensor([tokenizer("today my cat")["input_ids"]])
    count = 4000
    with torch.no_grad():
        law = model(input_ids=prompt).logits[0, -1].double().softmax(-1)
    theirs = model.generate(
        prompt.repeat(count, 1), attention_mask=torch.ones(count, prompt.shape[1], dtype=torch.long),
        do_sample=True, top_k=0, max_new_tokens=2, pad_token_id=tokenizer.pad_token_id,
    )[:, prompt.shape[1] :]  # fmt: skip
    from bilevel_rl.llm.data.prompts import Prompt
    from bilevel_rl.llm.sampling.sampler import Sampler, uniforms

    sampler = Sampler((tokenizer.eos_token_id,), tokenizer.pad_token_id)
    rows = [Prompt(tuple(prompt[0].tolist()), "today my cat")] * count
    ours = sampler(model, rows, uniforms(count, 2, 7)).completions
    assert two_sample_z(ours[:, 0], law) < 4.5
    assert two_sample_z(theirs[:, 0], law) < 4.5
    # joint law of both tokens: the most frequent pairs of one against the other
    pairs = [tuple(row) for row in torch.cat([ours, theirs]).tolist()]
    common = sorted(set(pairs), key=pairs.count, reverse=True)[:8]
    for pair in common:
        a = sum(tuple(row) == pair for row in ours.tolist()) / count
        b = sum(tuple(row) == pair for row in theirs.tolist()) / count
        p = (a + b) / 2
        assert abs(a - b) < 4.5 * math.sqrt(2 * p * (1 - p) / count)


def two_sample_z(tokens, law):
    """Largest deviation of a token's frequency from its probability, in standard errors (tokens expected 20
    times).
    """
    n = len(tokens)
    seen = torch.bincount(tokens, minlength=len(law)).double() / n
    keep = law * n >= 20
    return float(((seen - law).abs() / (law * (1 - law) / n).sqrt())[keep].max())


def test_grpo_of_trl_trains_on_our_reward(base, tmp_path):
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    trainer = run(base, tmp_path / "run")
    written = export(trainer, tmp_path / "export")
    reward = AutoModelForSequenceClassification.from_pretrained(written["reward"])
    seen = []

    def gold(prompts, completions, **columns):
        seen.append((prompts, completions))
        return exclaims(prompts, completions)

    args = trl.GRPOConfig(
        output_dir=str(tmp_path / "grpo"), per_device_train_batch_size=4, num_generations=4, max_completion_length=8,
        max_steps=1, report_to=[], use_cpu=True, bf16=False, logging_steps=1, disable_tqdm=True, save_strategy="no",
    )  # fmt: skip
    tokenizer = AutoTokenizer.from_pretrained(base)
    grpo = trl.GRPOTrainer(
        model=load_language_model(base), reward_funcs=[reward, gold], args=args, processing_class=tokenizer,
        reward_processing_classes=[AutoTokenizer.from_pretrained(written["reward"]), None],
        train_dataset=datasets.Dataset.from_list([{"prompt": text} for text in corpus.make_prompts()[:8]]),
    )  # fmt: skip
    grpo.train()
    logged = {key: value for line in grpo.state.log_history for key, value in line.items()}
    prompts, completions = seen[0]
    log = [
        value
        for key, value in logged.items()
        if key.startswith("rewards/") and key.endswith("/mean") and "gold" not in key
    ]
    # TRL gives a reward model the whole text without special tokens
    ids = [
        tokenizer(p + c, add_special_tokens=False)["input_ids"]
        for p, c in zip(prompts, completions, strict=True)
    ]
    with torch.no_grad():
        ours = torch.cat([reward(input_ids=torch.tensor([row])).logits[:, 0] for row in ids])
    assert log == [pytest.approx(float(ours.mean()), abs=1e-4)]


# -- restoring and grading -----------------------------------------------------------------------------------


def test_a_restored_run_is_the_run(base, tmp_path):
    trainer = run(base, tmp_path / "run")
    again = restore(tmp_path / "run")
    rollout = texts_of(trainer)
    with torch.no_grad():
        for role in ("policy", "policy_l", "reference"):
            assert torch.equal(again.roles.logits(role, rollout), trainer.roles.logits(role, rollout))
        assert torch.equal(again.roles.rewards(rollout), trainer.roles.rewards(rollout))
    assert again.step == 3


def test_what_can_not_be_restored_is_named(base, tmp_path):
    with pytest.raises(RunNotFound):
        restore(tmp_path)
    run(base, tmp_path / "run")
    header = json.loads((tmp_path / "run" / "run.json").read_text())
    (tmp_path / "run" / "run.json").write_text(json.dumps({**header, "kind": "finite"}))
    with pytest.raises(RunNotFound, match="kind 'finite'"):
        restore(tmp_path / "run")
    header["config"]["policy"] = ""
    (tmp_path / "run" / "run.json").write_text(json.dumps(header))
    with pytest.raises(InvalidConfig, match="an object in Python"):
        restore(tmp_path / "run")
    (tmp_path / "run" / "checkpoint" / "state.json").unlink()
    with pytest.raises(RunNotFound, match="no checkpoint"):
        restore(tmp_path / "run")


def test_grades_of_the_reference_and_of_the_policy(base, tmp_path):
    trainer = run(base, tmp_path / "run")
    prompts = corpus.make_prompts()[20:52]
    args = (prompts, trainer.generator, trainer.tokenizer, exclaims)
    before, table = evaluate(trainer.roles, *args, role="reference", max_new_tokens=8, batch=8)
    after, _ = evaluate(trainer.roles, *args, role="policy", max_new_tokens=8, batch=8)
    assert before["kl"] == 0.0
    assert after["kl"] > 0.0
    assert before["gold"] == pytest.approx(np.mean([row["gold"] for row in table]))
    assert before["gold"] == pytest.approx(np.mean(exclaims(prompts, [row["completion"] for row in table])))
    assert before["gold_error"] == pytest.approx(
        np.std([row["gold"] for row in table], ddof=1) / math.sqrt(32)
    )
    again, _ = evaluate(trainer.roles, *args, role="reference", max_new_tokens=8, batch=8)
    assert again == before
