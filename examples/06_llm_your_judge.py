"""Fine-tune a tiny language model with a judge of your own; under a minute, offline.

The model is made on the spot from the grammar's tweets. The judge prefers the tweet with more hashtags. Watch the gold
score (hashtags a tweet), the learned reward and the KL to the model as it was.
"""

from pathlib import Path
from tempfile import mkdtemp

import torch

from bilevel_rl.llm.config import Config
from bilevel_rl.llm.export import export
from bilevel_rl.llm.tasks import corpus
from bilevel_rl.llm.tasks.pretrain import LanguageModelConfig, train_language_model, train_tokenizer
from bilevel_rl.llm.trainer import BilevelTrainer

torch.set_num_threads(1)
tweets = corpus.make_tweets(4000, seed=0).texts
tokenizer = train_tokenizer(tweets, vocabulary=600)
size = LanguageModelConfig(vocabulary=600, layers=1, width=32, heads=2, steps=200, learning_rate=5e-3)
model, figures = train_language_model(tweets, tweets[:200], tokenizer, size)
print(f"language model: {figures['held_out_loss']:.2f} nats a token")


def judge(prompts, completions, shuffle_order=True):
    """0 or 1: which has more hashtags; -1 for a tie."""
    counts = [(first.count("#"), second.count("#")) for first, second in completions]
    return [-1 if a == b else int(b > a) for a, b in counts]


def hashtags(prompts, completions, **columns):
    """The gold score, for the record only: no method sees it."""
    return [float(text.count("#")) for text in completions]


config = Config(
    steps=60, prompts_per_step=8, pairs_per_step=4, replay_pairs=16, alpha=1e-3, tau=0.2, max_new_tokens=24,
    objective={"label_likelihood": 1.0, "win_rate": 0.05},
)  # fmt: skip
trainer = BilevelTrainer(
    config, model, prompts=corpus.make_prompts(), tokenizer=tokenizer, judge=judge, gold=hashtags
)
history = trainer.train()
for line in history[::15] + history[-1:]:
    print(f"iteration {line['iteration']:3d}  labels {line['labels']:3d}  hashtags {line['gold']:.2f}  "
          f"learned reward {line['learned_reward']:+.2f}  KL {line['kl']:.2f}")  # fmt: skip
for row in trainer.table()[:3]:
    print(f"  {row['prompt']} |{row['completion']}")
folders = export(trainer, Path(mkdtemp()) / "exported", name="hashtag writer")
print("exported:", ", ".join(sorted(folders)))
assert sum(line["gold"] for line in history[-10:]) > sum(line["gold"] for line in history[:10])
