"""What is exported is what was trained, for the tools that load it."""

from __future__ import annotations

import pytest
import torch
from llm_models import gpt2, llama, stirred, trainer
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.rewards.functions import call_reward_function
from bilevel_rl.llm.rewards.models import ClassifierReward, LinearReward, WeightedRewards
from bilevel_rl.llm.sampling.rollout import from_pairs

ROWS = [(Prompt((3, 4, 5), "a"), (6, 7, 1)), (Prompt((8,), "b"), (9, 10)), (Prompt((3, 4), "c"), (11, 12, 13, 1))]


def right_padded(rollout, pad):
    """Prompt and completion as transformers' own tools lay them out."""
    rows = [list(p.ids) + ids for p, ids in zip(rollout.prompts, rollout.completion_ids(), strict=True)]
    width = max(map(len, rows))
    ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


# PEFT 0.21 asks transformers by a name that transformers 5.20 has renamed
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")
@pytest.mark.parametrize("make", [gpt2, llama])
@pytest.mark.parametrize("backend", ["full", "lora"])
def test_exported_policy_and_reward_are_the_trained_ones(make, backend, tmp_path):
    made = trainer(make(), backend=backend)
    roles = stirred(made.roles)
    rollout = from_pairs(ROWS, pad_id=2)
    made.export_policy(tmp_path / "policy")
    made.export_reward(tmp_path / "reward")
    assert not [p for p in tmp_path.rglob("*") if p.suffix in (".bin", ".pt", ".pth", ".pkl")]
    if backend == "lora":
        import peft

        loaded = peft.PeftModel.from_pretrained(make(), tmp_path / "policy").eval()
    else:
        loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "policy").eval()
    ids, mask = right_padded(rollout, 2)
    with torch.no_grad():
        theirs = loaded(input_ids=ids, attention_mask=mask).logits
        ours = roles.logits("policy", rollout)
        for i, (prompt, completion) in enumerate(ROWS):
            start = len(prompt.ids) - 1
            n = len(completion)
            torch.testing.assert_close(theirs[i, start : start + n], ours[i, :n], atol=1e-5, rtol=1e-5)
        reward = AutoModelForSequenceClassification.from_pretrained(tmp_path / "reward").eval()
        scores = reward(input_ids=ids, attention_mask=mask).logits[:, 0]
        torch.testing.assert_close(scores, roles.rewards(rollout), atol=1e-5, rtol=1e-5)
        assert scores.abs().max() > 1e-2
    # and back: the exported reward is a reward model again
    again = trainer(make(), reward=str(tmp_path / "reward"))
    with torch.no_grad():
        torch.testing.assert_close(again.roles.rewards(rollout), scores, atol=1e-5, rtol=1e-5)


def test_a_reward_that_is_no_classifier_says_how_to_save_it(tmp_path):
    made = trainer(reward=WeightedRewards([lambda completion_ids, **_: [1.0] * len(completion_ids)], [1.0]))
    with pytest.raises(InvalidConfig, match="export_reward: got WeightedRewards; a sequence classifier is needed"):
        made.export_reward(tmp_path)


def test_rewards_are_read_at_the_last_real_token_whatever_the_padding():
    model = trainer().roles
    stirred(model)
    rollout = from_pairs(ROWS, pad_id=2)
    other = from_pairs(ROWS, pad_id=1)  # padding with the end token itself
    alone = [from_pairs([row], pad_id=2) for row in ROWS]
    with torch.no_grad():
        scores = model.rewards(rollout)
        torch.testing.assert_close(model.rewards(other), scores)
        torch.testing.assert_close(torch.cat([model.rewards(one) for one in alone]), scores, atol=1e-6, rtol=1e-5)


def test_an_encoder_classifier_is_a_reward_model_too():
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(vocab_size=24, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
                        num_labels=1)  # fmt: skip
    reward = ClassifierReward(BertForSequenceClassification(config).eval())
    assert reward(from_pairs(ROWS, pad_id=2)).shape == (3,)


def test_weighted_rewards_are_linear_in_x_and_hand_over_columns():
    rows = [(Prompt((3,), "p", {"target": 5}), (5, 6)), (Prompt((4,), "q", {"target": 7}), (7, 7))]
    rollout = from_pairs(rows, pad_id=0)

    def hits(prompts, completions, completion_ids, target, **_):
        assert prompts == ["p", "q"]
        return [ids.count(t) for ids, t in zip(completion_ids, target, strict=True)]

    def length(completions, **_):
        return [len(c) for c in completions]

    reward = WeightedRewards([hits, length], [2.0, 0.5])
    assert reward(rollout).tolist() == [3.0, 5.0]
    reward(rollout).sum().backward()
    assert reward.x.grad.tolist() == [3.0, 4.0]
    assert call_reward_function(hits, rollout).tolist() == [1.0, 2.0]


def test_linear_rewards_do_not_train_their_features():
    weight = torch.ones(4, requires_grad=True)
    reward = LinearReward(lambda r: weight * torch.ones(r.size, 4), 4)
    reward(from_pairs(ROWS, pad_id=2)).sum().backward()
    assert weight.grad is None
    assert reward.x.grad.tolist() == [3.0] * 4
