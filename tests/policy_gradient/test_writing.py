"""Rollouts that generate in a way of their own, with a writer whose rows can be worked out by hand."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient import compose, named
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.rollout import (
    Hint,
    Nearest,
    PrefixValues,
    PromptModel,
    RolloutAsk,
    RolloutPlan,
    StepProbe,
    Tree,
    Vine,
    Windows,
    Written,
)

HORIZON = 6


class Digits:
    """Writes digits until the row is full; what a row is worth is the sum of its digits over 100.

    Each call draws other digits, and confident ones are even.
    """

    horizon = HORIZON

    def __init__(self):
        self.drawn = 0
        self.generator = torch.Generator().manual_seed(0)

    def write(self, start, begin=None, keep=None, limit=None):
        n = len(start)
        kept = torch.zeros(n, dtype=torch.long) if keep is None else keep
        new = (HORIZON - kept).clamp(max=HORIZON if limit is None else limit)
        length = kept + new
        width = int(length.max())
        column = torch.arange(width)
        tokens = torch.randint(1, 10, (n, width), generator=self.generator)
        if begin is not None and begin.width:
            w = min(begin.width, width)
            inside = column[:w] < kept[:, None]
            tokens[:, :w] = torch.where(inside, begin.tokens[:, :w], tokens[:, :w])
        mask = column < length[:, None]
        self.drawn += int(new.sum())
        logp = torch.where(tokens % 2 == 0, -0.01, -1.0)
        return Written(start, torch.where(mask, tokens, 0), mask, length, length == HORIZON, torch.where(mask, logp, 0))

    def rewards(self, written):
        return written.tokens.sum(1) / 100

    def shown(self, start):
        return (7, 7, 7, 7, 7) if start % 2 == 0 else ()

    def field(self, name, written):
        assert name == "turn"
        return torch.arange(written.width).expand(len(written), -1) // 2

    def probe(self, written, keep, tail):
        return keep / HORIZON, 1 - keep / HORIZON


def ask(group=4, starts=2, iteration=0, memory=None, value=None):
    return RolloutAsk(torch.arange, starts, group, value, iteration, memory or {})


def written(component, **changes):
    one, writer = ask(**changes), Digits()
    plan = component(one, RolloutPlan.plain(one))
    return component.write(writer, one, plan, None), writer, plan


def test_prefix_values_are_means_of_rows_that_go_on_and_telescope_to_the_reward():
    rows, writer, _ = written(PrefixValues(continuations=50, interval=2))
    segment, value = rows.fields["segment"], rows.fields["prefix_value"]
    first = torch.zeros_like(rows.mask)
    for i in range(len(rows)):
        for t in range(HORIZON):
            first[i, t] = t == 0 or segment[i, t] != segment[i, t - 1]
    assert bool((value[~first] == 0).all())
    # a digit is 5 on average: what stands so far, and 5 for each that is still to come
    so_far = torch.nn.functional.pad(rows.tokens.cumsum(1), (1, 0))[:, :-1] + 5.0 * (HORIZON - torch.arange(HORIZON))
    assert (value - so_far / 100)[first].abs().max() < 4.5 * (8 * 6 / 5) ** 0.5 / 50**0.5 / 10
    assert writer.drawn > 8 * HORIZON
    batch = Batch.make(mask=rows.mask, reward=writer.rewards(rows), old=rows.logp, prefix_value=value, segment=segment)
    advantage = compose("credit=segment_chain").credit(batch)
    total = (advantage * first).sum(1)
    torch.testing.assert_close(total, batch.score - value[:, 0])


@pytest.mark.parametrize(("group", "levels"), [(8, (2, 2, 2)), (6, (2, 3)), (5, (5,))])
def test_a_tree_shares_beginnings_level_by_level(group, levels):
    rows, writer, _ = written(Tree(), group=group)
    path, depth = rows.fields["path"], rows.fields["depth"]
    assert path.shape == (2 * group, len(levels))
    step = HORIZON // len(levels)
    for i in range(len(rows)):
        for j in range(len(rows)):
            shared = int((path[i] == path[j]).sum())  # levels from the root on
            assert bool((rows.tokens[i, : shared * step] == rows.tokens[j, : shared * step]).all())
    assert depth[0].tolist() == [min(t // step, len(levels) - 1) for t in range(HORIZON)]
    assert len(path[:, -1].unique()) == 2 * group
    assert writer.drawn < 2 * group * HORIZON or len(levels) == 1
    batch = Batch.make(mask=rows.mask, reward=writer.rewards(rows), group=rows.start, path=path, depth=depth)
    advantage = named("segment_tree").credit(batch)
    for node in path[:, 0].unique():  # leaves below one first-level node have one first-level credit
        assert advantage[path[:, 0] == node, 0].unique().numel() == 1


def test_a_tree_that_does_not_fit_is_refused_before_anything_is_written():
    with pytest.raises(InvalidConfig, match="their product is the number of rows"):
        Tree(branching=(2, 3))(ask(), RolloutPlan.plain(ask()))


def test_a_start_that_stands_in_line_twice_has_two_trees_and_credits_that_sum_to_zero():
    one = ask(group=4, starts=3)
    line = RolloutPlan(torch.tensor([0, 1, 1]).repeat_interleave(4))  # the last of one round is the first of the next
    writer, component = Digits(), Tree()
    rows = component.write(writer, one, component(one, line), None)
    path = rows.fields["path"]
    assert rows.start.tolist() == [0] * 4 + [1] * 8
    assert path.shape == (12, 2)
    assert [path[rows.start == start, 0].unique().numel() for start in (0, 1)] == [2, 4]
    batch = Batch.make(
        mask=rows.mask, reward=writer.rewards(rows), group=rows.start, path=path, depth=rows.fields["depth"]
    )
    advantage = named("segment_tree").credit(batch)[:, 0]
    for start in (0, 1):
        assert advantage[rows.start == start].sum().abs() < 1e-5
    with pytest.raises(InvalidConfig, match="multiples of sampling"):
        component(one, RolloutPlan(torch.tensor([0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2])))


def test_all_rows_of_a_vine_go_on_from_one_state():
    cuts = set()
    for k in range(12):
        rows, writer, _ = written(Vine(size=2), iteration=k)
        cut, sets = rows.fields["window_start"], rows.fields["set_id"]
        for group in (0, 1):
            mine = rows.start == group
            (at,) = cut[mine].unique().tolist()
            cuts.add(at)
            assert bool((rows.tokens[mine, :at] == rows.tokens[mine][0, :at]).all())
            assert sets[mine].unique().numel() == 2
        assert writer.drawn == 2 * HORIZON + int((HORIZON - cut).sum())
    assert len(cuts) > 3  # all over the row


def test_hints_are_longer_for_harder_starts_and_none_without_a_solution():
    rows, _, _ = written(Hint(), value=torch.tensor([0.0, 0.0]))
    hint, hinted = rows.fields["hint"], rows.fields["hinted"]
    assert hinted.tolist() == [False, False, True, True, False, False, False, False]  # start 1 has no solution
    assert hint[2].tolist() == [True] * 4 + [False] * 2  # .8 of five tokens
    assert rows.tokens[2, :4].tolist() == [7] * 4
    easy, _, _ = written(Hint(), value=torch.tensor([1.0, 1.0]))
    assert not bool(easy.fields["hinted"].any())


def test_windows_go_on_until_a_row_is_finished_and_every_token_is_new_once():
    component, writer, memory = Windows(tokens=2), Digits(), {}
    seen: dict[int, list[int]] = {}
    for k in range(4):
        one = dataclasses.replace(ask(starts=2, group=1, iteration=k), memory=memory)
        one = dataclasses.replace(one, candidates=lambda n, k=k: 10 * k + torch.arange(n))
        plan = component(one, RolloutPlan.plain(one))
        rows = component.write(writer, one, plan, None)
        pending, begin = rows.fields["pending"], rows.fields["window_start"]
        for i, start in enumerate(rows.start.tolist()):
            new = rows.tokens[i, begin[i] : rows.length[i]].tolist()
            assert len(new) == 2
            assert rows.tokens[i, : begin[i]].tolist() == seen.get(start, [])
            seen.setdefault(start, []).extend(new)
        batch = Batch.make(
            mask=rows.mask, reward=torch.zeros(len(rows)), group=rows.start, done=rows.ended, pending=pending,
            completions=rows.tokens,
        )  # fmt: skip
        memory = {"windows": component.update(component.init(), batch)}
        assert pending.tolist() == [k % 3 != 2] * 2
    assert sorted(map(len, seen.values())) == [2, 2, 6, 6]


def test_probes_stand_at_every_token_of_their_step():
    rows, _, _ = written(StepProbe())
    accuracy = rows.fields["accuracy"]
    torch.testing.assert_close(accuracy[0], torch.tensor([2, 2, 4, 4, 6, 6]) / HORIZON)
    torch.testing.assert_close(rows.fields["confidence"], 1 - accuracy)
    assert rows.fields["start_potential"].tolist() == [-1.0] * 8  # wrong and sure


def test_a_value_model_of_starts_learns_what_it_has_not_seen_and_chooses_by_it():
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(400, 12, generator=generator)
    truth = torch.sigmoid(2 * features[:, 0])
    model = PromptModel(size=12)
    state = model.init()
    for k in range(40):
        index = torch.arange(200)[5 * k : 5 * k + 5].repeat_interleave(4)
        paid = (torch.rand(20, generator=generator) < truth[index]).float()
        batch = Batch.make(mask=torch.ones(20, 1), reward=paid, group=index, start_features=features[index])
        state = model.update(state, batch)
    guess = model.predict(state, features[200:])  # none of them was seen
    assert float(torch.corrcoef(torch.stack([guess, truth[200:]]))[0, 1]) > 0.8
    one = RolloutAsk(lambda n: 200 + torch.arange(n), 10, 1, None, 0, {"prompt_model": state}, lambda s: features[s])
    chosen = Nearest(candidates=20, value=model)(one, RolloutPlan.plain(one)).start
    assert (truth[chosen] - 0.5).abs().mean() < 0.6 * (truth[200:] - 0.5).abs().mean()


def test_the_recipes_that_need_such_rollouts_have_them_and_are_written_down():
    for name in ("segment_chain", "segment_tree", "polychromic", "adhint", "t_ppo_windows", "spae", "pcl", "v0_budget"):
        recipe = named(name)
        assert recipe.rollout
        assert compose(recipe.describe()["composition"]).rollout == recipe.rollout
