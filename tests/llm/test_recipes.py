"""Recipes in the trainer: every slot, every named recipe, both followers, resuming, and what is refused."""

from __future__ import annotations

import json
import math

import pytest
import torch
from llm_models import PROMPTS, config, gold, gpt2, judge, trainer, untimed, weights

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.llm import trainer as trainer_module
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.rewards.models import GatedRewards
from bilevel_rl.llm.trainer import BilevelTrainer
from bilevel_rl.policy_gradient import losses
from bilevel_rl.policy_gradient.credit import GAE, Gate, GroupNorm, LeaveOneOut, MultiReward
from bilevel_rl.policy_gradient.losses import Unified
from bilevel_rl.policy_gradient.losses.unified import itself_on_demonstrations
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.recipes import ALL, compose, named
from bilevel_rl.policy_gradient.select import Informative, Replay

SHOWN = [{"prompt": ids, "demonstration": [7, 8, 1], "answer": [7]} for ids in PROMPTS]


def hashed(rollout, number):
    """[N, T] integers below `number`, a function of the tokens."""
    return rollout.completions.long() * 7 % number


FIELDS = {
    "turn": lambda y: torch.arange(y.horizon).expand(y.size, -1) // 2,
    "state_key": lambda y: hashed(y, 5),
    "action_key": lambda y: hashed(y, 3),
    "duration": lambda y: y.lengths.double() + 1,
    "switch": lambda y: hashed(y, 2).bool(),
    "value_high": lambda y: 0.1 * hashed(y, 5).float(),
    "other_advantage": lambda y: hashed(y, 5).float() - 2,
    "predicted_gain": lambda y: 0.1 * hashed(y, 5).float(),
    "predicted_shift": lambda y: 0.01 * hashed(y, 5).float(),
    "hint": lambda y: (torch.arange(y.horizon) < 1) & (torch.arange(y.size) % 2 == 0)[:, None],
    "hinted": lambda y: torch.arange(y.size) % 2 == 0,
    "prefix_value": lambda y: 0.1 * hashed(y, 5).float(),
    "cover": lambda y: torch.nn.functional.one_hot(hashed(y, 4), 4).bool(),
    "path": lambda y: torch.stack([torch.arange(y.size) % 4 // 2, torch.arange(y.size) % 4], 1),
    "depth": lambda y: (torch.arange(y.horizon) >= 2).long().expand(y.size, -1),
    "window_start": lambda y: torch.zeros(y.size, dtype=torch.long),
    "confidence": lambda y: 0.1 * hashed(y, 5).float(),
    "accuracy": lambda y: 0.1 * hashed(y, 5).float(),
}


# fields that the named recipes' own rollouts and components find out
GENERATED = {
    "prefix_value", "path", "depth", "window_start", "confidence", "accuracy", "hint", "hinted", "value_high",
    "predicted_gain", "predicted_shift",
}  # fmt: skip
SMALLER = {  # sets of two, of four responses
    "polychromic": "rollout=vine(size=2), credit=polychromic(size=2), weigh=window, loss=clipped",
    "polychromic_sets": "credit=polychromic(size=2), loss=clipped",
}


def run(**changes):
    """A trainer on 2 prompts x 4 responses x 6 tokens."""
    return trainer(**{"prompts_per_step": 2, "pairs_per_step": 2, "steps": 2, **changes})


def plain(**changes):
    """The same without an upper level, on two reward functions."""
    length = lambda completion_ids, **_: [0.1 * len(ids) for ids in completion_ids]  # noqa: E731
    return run(**{"method": "plain", "reward": [gold, length], **changes})


FLOWS = ("awm",)  # its loss reads a velocity's error, which a text does not have


NAMES = [recipe.name for recipe in ALL if recipe.name not in FLOWS]


# every third by name in every run: `tests/policy_gradient` tries every component and builds every recipe
@pytest.mark.parametrize("name", [
    pytest.param(n, marks=pytest.mark.slow if i % 3 else []) for i, n in enumerate(sorted(NAMES))
])  # fmt: skip
def test_every_named_recipe_trains_a_policy_alone_and_as_a_lower_level(name):
    recipe = SMALLER.get(name, name)
    fields = {k: v for k, v in FIELDS.items() if k not in GENERATED}
    made = [plain(recipe=recipe, fields=fields, prompts=SHOWN)]
    if name not in ("sft", "precision"):
        made.append(run(recipe=recipe, fields=fields, prompts=SHOWN, estimator="tilted", objective="gold"))
    for one in made:
        before = weights(one)
        history = one.train()
        assert len(history) == 2
        assert all(math.isfinite(value) for line in history for value in line.values())
        after = weights(one)
        assert all(bool(v.isfinite().all()) for v in after.values())
        assert any(not torch.equal(v, after[k]) for k, v in before.items() if k.startswith("policy/"))


@pytest.mark.parametrize("name", FLOWS)
def test_recipes_of_flows_are_refused_for_texts_before_training(name):
    with pytest.raises(InvalidConfig, match=r"'matching_error'.*A flow \(flows\.FlowEngine"):
        plain(recipe=name)


@pytest.mark.parametrize("estimator", ["paired", "tilted"])
def test_the_default_recipe_is_the_built_in_credit_to_the_bit(estimator):
    options = {"kl_estimator": "k1", "level": "sequence", "estimator": estimator, "dtype": "float64", "steps": 3}
    built_in, recipe = run(**options), run(recipe=Recipe(), **options)
    built_in.train(), recipe.train()
    for key, value in weights(built_in).items():
        assert torch.equal(weights(recipe)[key], value), key
    assert untimed(built_in.history) == untimed(recipe.history)


def test_an_empty_recipe_key_is_the_default():
    one, two = run(), run(recipe="")
    assert untimed(one.train()) == untimed(two.train())


@pytest.mark.parametrize("recipe", [
    "grpo", "copg", "ppo", "credit=group_norm, loss=clipped, regular=0.1*exact_kl", "d3s", "hpt",
])  # fmt: skip
@pytest.mark.parametrize("epochs", [1, 2])
def test_rows_in_parts_give_the_same_step_whatever_the_loss_compares(recipe, epochs):
    found = []
    for size in (0, 3):
        made = plain(recipe=recipe, prompts=SHOWN, dtype="float64", optimizer="sgd", alpha=0.1, beta=0.1,
                     micro_batch=size, epochs=epochs, steps=1)  # fmt: skip
        made.train()
        found.append(weights(made))
    for key, value in found[0].items():
        torch.testing.assert_close(found[1][key], value, atol=1e-11, rtol=1e-9)


def test_plain_fine_tuning_raises_the_reward():
    made = plain(recipe="rloo", steps=40, prompts_per_step=4, tau=0.01, reward=gold, alpha=1e-2)
    history = made.train()
    first, last = (sum(line["learned_reward"] for line in part) / 10 for part in (history[:10], history[-10:]))
    assert last > first + 0.5
    assert history[-1]["labels"] == 0


def test_plain_fine_tuning_leaves_the_weights_of_the_rewards_alone():
    made = plain(recipe="grpo")
    made.train()
    assert made.roles.parameters("reward")["x"].tolist() == [1.0, 1.0]
    with pytest.raises(InvalidConfig, match="'classifier' with method=plain; nothing would train it"):
        run(method="plain")


def test_reward_terms_reach_components_apart():
    seen = []

    class Watch(MultiReward):
        def __call__(self, batch):
            seen.append(batch.scores.shape)
            return super().__call__(batch)

    plain(recipe=Recipe(credit=Watch()), steps=1, kl_estimator="k3").train()
    assert seen == [(8, 2)]


# -- both followers --------------------------------------------------------------------------------------------


def test_both_followers_learn_from_the_rows_and_weights_of_theta():
    calls = []

    class Half:
        """Keeps every other response; each call would keep other ones."""

        def __call__(self, batch):
            calls.append("select")
            return batch.rows(torch.arange(len(batch)) % 2 == len(calls) % 2)

    class Weigh:
        def __call__(self, batch):
            calls.append("weigh")
            return torch.full_like(batch.old, 0.5)

    made = run(recipe=Recipe(select=(Half(),), weigh=(Weigh(),)), steps=1, objective="gold")
    kept = {}
    inner = made.learner.prepare

    def prepare(*given):
        found = inner(*given)
        kept.update({f.scored.role: f.batch for f in found})
        return found

    made.learner.prepare = prepare
    made.train()
    assert calls == ["select", "weigh"]
    theta, theta_l = kept["policy"], kept["policy_l"]
    assert theta.trajectory.tolist() == theta_l.trajectory.tolist()
    assert len(theta) == 4
    assert torch.equal(theta.weight, torch.full_like(theta.weight, 0.5))
    assert torch.equal(theta_l.weight, 0.5 * torch.ones_like(theta.weight))  # at the start all ratios are 1


def test_theta_l_is_paid_the_bonus_and_theta_is_not():
    made = run(recipe=Recipe(), objective="gold", steps=1, tau=0.01)
    rewards = {}
    inner = made.learner.prepare

    def prepare(followers, *rest):
        found = inner(followers, *rest)
        rewards.update({f.scored.role: f.batch.score for f in found})
        rewards["gold"] = made.leader.gold_scores(followers)["policy"]
        return found

    made.learner.prepare = prepare
    made.train()
    change = rewards["policy_l"] - rewards["policy"]
    centred = rewards["gold"] - rewards["gold"].mean()
    torch.testing.assert_close(change - change.mean(), made.config.w * centred, atol=1e-5, rtol=1e-4)


# -- stateful components ---------------------------------------------------------------------------------------

REPLAYING = "reward=win_rate, select=[replay, pcl(share=0.5)], credit=replay_credit(group_mean), regular=0.1*safe"


@pytest.mark.parametrize("recipe", [
    REPLAYING, "credit=group_norm, step=n_pg_igt", "credit=leave_one_out, step=snr", "r3", "v0_budget", "capo",
])  # fmt: skip
def test_a_resumed_run_has_the_bits_of_the_uninterrupted_one(recipe, tmp_path):
    def make(folder, steps, **more):
        sevens = lambda completion_ids, **_: [float(7 in ids) for ids in completion_ids]  # noqa: E731
        return plain(recipe=recipe, reward=sevens, out=str(tmp_path / folder), steps=steps, alpha=0.05, **more)

    whole = make("whole", 6)
    whole.train()
    make("parts", 3).train()
    again = make("parts", 6, resume=True)
    again.train()
    assert untimed(again.history) == untimed(whole.history)
    for key, value in weights(whole).items():
        assert torch.equal(weights(again)[key], value), key
    mine, theirs = whole.learner.tensors(), again.learner.tensors()
    assert mine.keys() == theirs.keys()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)
    if "replay" in recipe or recipe == "r3":
        assert any(key.startswith("replay0/") for key in mine)
        assert any(b.rows for b in again.learner.buffers)
    files = {path.suffix for path in (tmp_path / "parts" / "checkpoint").iterdir()}
    assert files == {".json", ".safetensors"}


def test_trainers_do_not_share_the_buffer_of_a_named_recipe():
    one, two = plain(recipe="r3"), plain(recipe="r3")
    one.train()
    assert one.learner.buffers[0].rows
    assert not two.learner.buffers[0].rows
    assert not next(c for c in named("r3").components if isinstance(c, Replay)).buffer.rows


def test_the_step_slot_extrapolates_and_comes_back():
    made = plain(recipe="credit=leave_one_out, step=n_pg_igt(eta=0.5)", steps=2, alpha=0.1)
    places = []
    inner = made.generator

    def generator(model, prompts, uniforms):
        places.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
        return inner(model, prompts, uniforms)

    made.generator = generator
    start = torch.cat([p.detach().flatten() for p in made.roles.parameters("policy").values()])
    made.train()
    assert torch.equal(places[0], start)  # no direction yet
    first = (places[1] - start).norm()  # twice the step: one step, and as far ahead again
    assert float(first) == pytest.approx(0.2, rel=1e-3)


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("changes", "text"), [
    ({"recipe": "hgpo"}, r"credit 'hgpo': got a batch without 'state_key'.*A multi-turn task whose states recur"),
    ({"recipe": "hpt"}, r"credit 'hpt_gate': got a batch without 'demonstration'.*A data set with solutions"),
    ({"recipe": "grpp"}, r"recipe: got 'grpp'; Did you mean 'grpo'"),
    ({"recipe": "grpo", "group": 1, "objective": "gold"}, r"credit 'group_norm': got 1 response a prompt"),
    ({"recipe": "sft"}, r"loss 'supervised': got method=bilevel; it imitates and reads no reward"),
    ({"recipe": "copg"}, r"loss 'copg': got estimator=shared; it does not read the advantage"),
    ({"recipe": "r3", "estimator": "paired"}, r"select 'replay': got bilevel with two rollouts; it picks responses"),
    ({"recipe": "rloo", "epochs": 2}, r"loss 'policy_gradient': got epochs=2; it is right for fresh samples only"),
    ({"recipe": "credit=group_norm, step=harpg"}, r"step 'harpg': got a language model"),
    ({"recipe": "credit=group_norm, step=adam"}, r"step 'adam': got two policies; their denominators must be one"),
    ({"coupling": 0.5, "method": "finite_difference"}, "the two policies answer two values of x"),
    ({"method": "fixed_reward", "objective": "gold"}, "nothing would fit the reward model"),
    ({"estimator": "tilted", "group": 2}, "both rows of a pair earn the same, so its covariance needs a third row"),
    ({"recipe": "credit=clipped"}, r"'clipped' in the slot 'credit'; it belongs in 'loss'"),
])  # fmt: skip
def test_what_cannot_work_is_refused_by_name_before_training(changes, text):
    options = {"prompts_per_step": 2, "pairs_per_step": 2, **changes}
    with pytest.raises(InvalidConfig, match=text):
        BilevelTrainer(config(**options), gpt2(), prompts=PROMPTS, judge=judge, gold=gold)


def test_selections_of_prompts_work_with_two_rollouts():
    made = run(recipe=Recipe(select=(Informative(),), credit=GroupNorm()), estimator="paired", objective="gold")
    assert len(made.train()) == 2


def test_critics_come_with_the_recipe_that_reads_values():
    made = run(recipe="ppo", credit="leave_one_out")
    assert "critic_l" in made.roles.names
    before = weights(made)
    made.train()
    assert any(not torch.equal(v, weights(made)[k]) for k, v in before.items() if k.startswith("critic_l/"))
    assert isinstance(compose("ppo").credit.inner, GAE)


def test_the_key_and_the_argument_are_the_same():
    one, two = run(recipe="grpo"), BilevelTrainer(
        Config.from_dict({**run().config.asdict(), "recipe": "grpo"}), gpt2(), prompts=PROMPTS, judge=judge, gold=gold
    )  # fmt: skip
    assert untimed(one.train()) == untimed(two.train())
    assert isinstance(LeaveOneOut(), type(named("rloo").credit))


def test_a_rule_that_rescales_does_not_blow_up_the_price_of_the_regulariser():
    """Where all rewards are equal, the advantage is the price's own, of the size of tau."""
    sizes = {}
    for tau in (0.01, 0.1):
        made = plain(recipe="credit=group_norm", reward=lambda completion_ids, **_: [1.0] * len(completion_ids),
                     kl_estimator="k1", tau=tau)  # fmt: skip
        with torch.no_grad():
            for p in made.roles.parameters("policy").values():
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
        followers = made.score(made.sample(3), tau, False, 3)
        (ready,) = made.learner.prepare(followers, None, None, made.facing(3), 3)
        assert followers[0].kl.sum() > 0.1
        sizes[tau] = float(ready.batch.advantage.abs().max() / tau)
    assert 0 < sizes[0.01] < 20
    assert sizes[0.1] < 20


# -- the gate as the upper variable ------------------------------------------------------------------------------


def test_the_gate_is_read_at_both_ends_of_the_difference_and_moves():
    seen = []

    class Watched(GatedRewards):
        def mix(self, solved):
            seen.append(self.gate.item())
            return super().mix(solved)

    reward = Watched([gold], gate=0.2)
    recipe = Recipe(credit=Gate(mix=reward.mix), loss=Unified(denominator=itself_on_demonstrations))
    made = run(method="finite_difference", recipe=recipe, reward=reward, prompts=SHOWN, objective="gold", steps=6,
               inner_steps=2, difference=0.5, zeta=1e-4)  # fmt: skip
    assert list(made.roles.parameters("reward")) == ["gate"]
    made.train()
    assert {round(g, 2) for g in seen} == {-0.3, 0.7}
    assert reward.gate.item() != pytest.approx(0.2)


# -- a resumed run is the same algorithm --------------------------------------------------------------------


@pytest.mark.parametrize(
    "recipe", ["grpo", "grpo, loss=gspo", Recipe("mine", credit=GAE(lam=0.5))], ids=["name", "varied", "object"]
)
def test_a_recipe_given_in_python_is_written_to_the_folder_and_resumed(recipe, tmp_path):
    straight = plain(recipe=recipe, steps=2)
    straight.train()
    out = str(tmp_path)
    plain(recipe=recipe, steps=1, out=out).train()
    header = json.loads((tmp_path / "run.json").read_text())
    kept = header["config"]["recipe"]
    assert compose(kept).describe()["composition"] == straight.recipe.describe()["composition"]
    state = json.loads((tmp_path / "checkpoint" / "state.json").read_text())
    assert state["recipe"]["composition"] == straight.recipe.describe()["composition"]
    again = plain(recipe=kept, steps=2, out=out, resume=True)  # as a command line does, from the configuration
    again.train()
    for key, value in weights(straight).items():
        assert torch.equal(weights(again)[key], value), key


def test_another_recipe_is_refused_on_resume(tmp_path):
    plain(recipe="grpo", steps=1, out=str(tmp_path)).train()
    with pytest.raises(InvalidConfig, match="resume: got recipe='rloo' where the checkpoint has 'grpo'"):
        plain(recipe="rloo", out=str(tmp_path), resume=True)
    with pytest.raises(InvalidConfig, match="resume: got recipe='' where the checkpoint has 'grpo'"):
        plain(out=str(tmp_path), resume=True)
    state = tmp_path / "checkpoint" / "state.json"
    changed = json.loads(state.read_text())
    changed["recipe"]["composition"] = changed["recipe"]["composition"].replace("eps=0.0001", "eps=0.1")
    state.write_text(json.dumps(changed))
    with pytest.raises(InvalidConfig, match=r"resume: got the recipe .*eps=0\.0001.* where the checkpoint has .*eps=0\.1"):
        plain(recipe="grpo", out=str(tmp_path), resume=True)


def test_a_recipe_that_cannot_be_written_is_refused_where_there_is_a_folder(tmp_path):
    recipe = Recipe("nameless", loss=losses.Clipped(aggregate=lambda values, batch: values.sum()))
    plain(recipe=recipe, steps=1).train()
    with pytest.raises(InvalidConfig, match=r"recipe: got .*<lambda> of .*, which has no name that finds it again"):
        plain(recipe=recipe, steps=1, out=str(tmp_path))
    assert not list(tmp_path.iterdir())


def test_what_cannot_act_is_said_before_training(monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(trainer_module.log, "warning", lambda text, *more: said.append(text % more))
    plain(recipe="credit=truncated_gae, loss=clipped, regular=0.1*kl_cov", epochs=2)
    assert not any("can't act here" in line for line in said)
    plain(recipe="credit=hgpo, loss=clipped, regular=0.1*kl_cov", fields=FIELDS)
    assert any(line.startswith("regular 'kl_cov' can't act here: one gradient step a batch") for line in said)


# -- the rollout slot asks for generation -------------------------------------------------------------------


def test_starts_are_chosen_before_they_cost_a_token():
    """The prompts written are those nearest to one half of what is remembered, and nothing else is generated."""
    made = plain(recipe="rollout=choose_nearest, credit=group_mean", steps=1)
    rates = torch.linspace(0, 1, len(made.prompts))
    made.learner.memory["pass_rates"]["value"] = rates.clone()
    made.train()
    rows = made.learner.rewarded
    line = made.engine._line(0)(8).unique()
    wanted = line[(rates[line] - 0.5).abs().argsort(stable=True)][:2]
    assert rows.group.unique().tolist() == wanted.sort().values.tolist()
    assert made.tokens == int(rows.length.sum())  # what was learnt from is all that was written


def test_rows_are_spread_by_contrast():
    made = plain(recipe="rollout=spread_budget, credit=group_norm", steps=1)
    rates = torch.full((len(made.prompts),), 0.95)
    hard = int(made.engine._line(0)(1)[0])
    rates[hard] = 0.5
    made.learner.memory["pass_rates"]["value"] = rates
    made.train()
    rows = torch.bincount(made.learner.rewarded.group, minlength=len(rates))
    assert rows.sum() == 8
    assert rows[hard] == rows.max()


@pytest.mark.parametrize("estimator", ["tilted", "shared"])
def test_groups_that_say_nothing_are_refilled_from_the_line(estimator):
    """A reward that is the same for all answers to even prompts: their rows are written again for other prompts."""
    ids = [p if isinstance(p, (list, tuple)) else list(p) for p in PROMPTS]
    flat = {tuple(ids[i]) for i in range(len(ids)) if i % 2 == 0}

    def reward(prompts, completion_ids, **_):
        rows = zip(prompts, completion_ids, strict=True)
        return [0.0 if tuple(p) in flat else float(len(set(c))) + 0.01 * sum(c) for p, c in rows]

    made = plain(recipe="rollout=refill(attempts=3), credit=group_norm", reward=reward, steps=1)
    before = plain(recipe="credit=group_norm", reward=reward, steps=1)
    made.train(), before.train()
    silent_now = sum(b.unique().numel() == 1 for b in groups(made))
    silent_before = sum(b.unique().numel() == 1 for b in groups(before))
    assert silent_before > 0
    assert silent_now < silent_before
    assert made.tokens > before.tokens  # what was thrown away counts
    assert len(made.learner.rewarded) == 8
    both = run(recipe="dapo", estimator=estimator, objective="gold", steps=1)
    assert all(math.isfinite(v) for v in both.train()[0].values())


def groups(made):
    """Scores of each group of the last batch."""
    batch = made.learner.rewarded
    return [batch.score[batch.group == g] for g in batch.group.unique()]


def test_refill_with_a_rollout_each_is_refused():
    with pytest.raises(InvalidConfig, match=r"rollout 'refill': got bilevel with two rollouts; each policy would write"):
        run(recipe="dapo", estimator="paired")


def test_both_policies_write_from_the_same_plan():
    made = run(recipe="pcl", estimator="paired", steps=1, objective="gold")
    made.learner.memory["pass_rates"]["value"] = torch.linspace(0, 1, len(made.prompts))
    one, two = (made.engine.sample(role, 0) for role in ("policy", "policy_l"))
    assert [p.ids for p in one.prompts] == [p.ids for p in two.prompts]
