"""The rollout slot: what is chosen before a token is spent, as pure functions of what is remembered."""

from __future__ import annotations

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient import compose, named
from bilevel_rl.policy_gradient.rollout import Nearest, Refill, RolloutAsk, RolloutPlan, Spread
from bilevel_rl.policy_gradient.rollout.refill import silent
from bilevel_rl.policy_gradient.select.prompts import contrast

VALUE = torch.tensor([0.0, 0.5, 1.0, 0.45, 0.9, 0.1, 0.53, 0.0])


def ask(value=VALUE, starts=2, group=4):
    return RolloutAsk(torch.arange, starts, group, value)


def test_without_a_rollout_the_next_starts_are_written():
    assert named("grpo").plan(ask()).start.tolist() == [0] * 4 + [1] * 4


def test_the_starts_nearest_to_one_half_are_written_and_no_others():
    plan = Nearest(candidates=4)(ask(), RolloutPlan.plain(ask()))
    assert plan.start.tolist() == [1] * 4 + [6] * 4  # .5 and .53, nearer than .45
    few = Nearest(candidates=2)(ask(), RolloutPlan.plain(ask()))
    assert few.start.tolist() == [1] * 4 + [3] * 4  # of the first four in line
    unknown = Nearest()(ask(None), RolloutPlan.plain(ask()))
    assert unknown.start.tolist() == [0] * 4 + [1] * 4  # nothing is remembered: the line's own


def test_a_start_is_chosen_once_even_if_it_comes_twice_in_line():
    line = RolloutAsk(lambda number: torch.arange(number) % 3, 4, 2, torch.tensor([0.5, 0.4, 0.0]))
    assert Nearest()(line, RolloutPlan.plain(line)).start.tolist() == [0, 0, 1, 1, 2, 2, 0, 0]


def test_rows_go_where_they_promise_contrast_and_their_number_is_that_of_the_iteration():
    plan = Spread(candidates=4, smallest=1)(ask(), RolloutPlan.plain(ask()))
    assert len(plan.start) == 8
    rows = torch.bincount(plan.start, minlength=8)
    assert rows[2] == 1  # always solved: the least
    assert rows.sum() == 8
    utility = contrast(rows.double(), VALUE.double()).sum()
    for out in range(8):
        for into in range(8):
            if rows[out] > 1 and out != into:
                other = rows.clone()
                other[out] -= 1
                other[into] += 1
                assert contrast(other.double(), VALUE.double()).sum() <= utility + 1e-9


@pytest.mark.parametrize("starts", [1, 2, 5])
@pytest.mark.parametrize("group", [1, 2, 3])
def test_every_plan_has_the_rows_of_an_iteration(starts, group):
    one = ask(starts=starts, group=group)
    for text in (
        "choose_nearest",
        "spread_budget",
        "refill",
        "[choose_nearest, refill]",
        "[refill, spread_budget]",
    ):
        plan = compose(f"rollout={text}").plan(RolloutAsk(lambda n: torch.arange(n) % 8, starts, group, VALUE))
        assert len(plan.start) == one.rows


def test_refill_has_the_next_starts_to_spare():
    plan = Refill(attempts=2)(ask(), RolloutPlan.plain(ask()))
    assert plan.attempts == 2
    assert plan.spare.tolist() == [2, 3, 4, 5]
    assert silent(torch.tensor([1.0, 1.0, 0.0, 1.0]), torch.tensor([0, 0, 1, 1])) == [[0, 1]]


def test_options_are_checked_and_rollouts_are_written_down():
    for text in ("refill(attempts=0)", "choose_nearest(candidates=0)", "spread_budget(smallest=0)"):
        with pytest.raises(InvalidConfig, match="at least 1"):
            compose(f"rollout={text}")
    recipe = named("dapo")
    assert compose(recipe.describe()["composition"]).rollout == recipe.rollout


def test_the_critics_target_is_not_whitened(batch):
    """`ppo` whitens advantages; what its critic learns is the advantage before, plus the value."""
    ppo, plain = named("ppo"), compose("credit=gae, loss=clipped")
    ready, raw = ppo.prepare(batch), plain.prepare(batch)
    torch.testing.assert_close(ppo.value_targets(ready), plain.value_targets(raw))
    assert (ready.advantage - raw.advantage).abs().max() > 0.1
    inside = ready.advantage[batch.mask]
    assert inside.mean().abs() < 1e-12
    assert inside.std(correction=0).item() == pytest.approx(1, rel=1e-6)
    vl_dac = named("vl_dac")
    scaled = vl_dac.prepare(batch)
    by_step = compose("credit=step_level(normalise=False)").prepare(batch)
    torch.testing.assert_close(vl_dac.value_targets(scaled), by_step.advantage + batch.inside("value"))
