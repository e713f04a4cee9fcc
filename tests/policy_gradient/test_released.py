"""The library's functions against figures that public releases computed (tests/data/released, source and licence there)."""

from __future__ import annotations

import json
import pathlib

import pytest
import torch

from bilevel_rl.policy_gradient import compose, named
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.credit import (
    Adora,
    Episode,
    GroupMean,
    GroupNorm,
    HierarchyOfGroups,
    LengthBaseline,
    StepGroups,
)
from bilevel_rl.policy_gradient.regularizers import PredictiveKL, TurnEntropy

DATA = pathlib.Path(__file__).parents[1] / "data" / "released"
SEVEN_DIGITS = {
    "rtol": 3e-6,
    "atol": 3e-6,
}  # the releases compute in 32 bit and the figures have seven decimals


def figures(name):
    return json.loads((DATA / f"{name}.json").read_text())


def test_every_file_says_where_it_is_from_and_under_which_licence():
    names = sorted(path.stem for path in DATA.glob("*.json"))
    assert names == ["adora_text", "epo_phase", "opo", "safe", "step_groups"]
    for name in names:
        assert figures(name)["source"]
        assert figures(name)["licence"]


# -- GiGPO and HGPO -----------------------------------------------------------------------------------------


def episodes(case):
    """Rows of the release, one a step, as responses of one token a turn; and where each row went."""
    trajectory = torch.tensor(case["trajectory"])
    ids, row = trajectory.unique(return_inverse=True)
    turn = torch.tensor(case["turn"])
    shape = (len(ids), int(turn.max()) + 1)
    mask, key = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape, dtype=torch.long)
    reward, group = torch.zeros(shape, dtype=torch.float64), torch.zeros(shape[0], dtype=torch.long)
    mask[row, turn], key[row, turn] = True, torch.tensor(case["state_key"])
    reward[row, turn] = torch.tensor(case["reward"], dtype=torch.float64)
    group[row] = torch.tensor(case["group"])
    batch = Batch.make(mask, reward, group, turn=torch.arange(shape[1]).expand(shape), state_key=key)
    return batch, (row, turn)


CASES = figures("step_groups")["cases"]
HGPO = [(i, name) for i, case in enumerate(CASES) for name in case["hgpo"]]


def test_there_are_sixteen_settings_of_each_case():
    assert [len(case["hgpo"]) for case in CASES] == [16] * len(CASES)


@pytest.mark.parametrize(("number", "setting"), HGPO, ids=[f"{i}-{name}" for i, name in HGPO])
def test_hgpo_is_the_releases(number, setting):
    case = CASES[number]
    history, mode, base = setting.split(",")
    scale = mode == "mean_std_norm"
    rule = HierarchyOfGroups(
        depth=int(history.removeprefix("history=")), gamma=case["gamma"], scale=scale,
        base=Episode(scale=scale, over="steps") if base == "base=True" else None,
    )  # fmt: skip
    batch, where = episodes(case)
    torch.testing.assert_close(
        rule(batch)[where], torch.tensor(case["hgpo"][setting]).double(), **SEVEN_DIGITS
    )


@pytest.mark.parametrize("mode", ["mean_norm", "mean_std_norm"])
@pytest.mark.parametrize("number", range(len(CASES)))
def test_gigpo_is_the_releases_sum(number, mode):
    case = CASES[number]
    batch, where = episodes(case)
    scale = mode == "mean_std_norm"
    episode = Episode(scale=scale, over="steps")
    both = episode + 1.0 * StepGroups(gamma=case["gamma"], scale=scale)
    torch.testing.assert_close(both(batch)[where], torch.tensor(case["gigpo"][mode]).double(), **SEVEN_DIGITS)
    part = torch.tensor(case["gigpo"][f"{mode},episode part"]).double()
    torch.testing.assert_close(episode(batch)[where], part, **SEVEN_DIGITS)


def test_the_recipe_gigpo_is_the_papers_episode_with_the_releases_steps():
    case = CASES[0]
    batch, _ = episodes(case)
    expected = GroupMean()(batch) + StepGroups()(batch)
    torch.testing.assert_close(named("gigpo").credit(batch), expected)
    written = compose("credit=episode + 1.0*step_groups, loss=clipped(aggregate=per_sequence)").credit
    torch.testing.assert_close(written(batch), expected)


# -- EPO, SAFE, ADORA, OPO ----------------------------------------------------------------------------------


def test_epo_phase_is_the_releases():
    figure = figures("epo_phase")
    for epoch, weight in zip(figure["epoch"], figure["weight"], strict=True):
        assert TurnEntropy.phase(epoch / figure["M"]) == pytest.approx(weight, abs=1e-7)


def test_safe_is_the_releases_controller_over_130_steps():
    """Penalty, threshold and phase of each step, the state carried as a recipe carries it."""
    rule, steps = PredictiveKL(), figures("safe")["steps"]
    state, phases = rule.init(), set()
    assert len(steps) == 130
    for step in steps:
        kl = torch.full((1, 1), step["kl"], dtype=torch.float64, requires_grad=True)
        batch = Batch.make(
            mask=[[1]], reward=torch.tensor([step["reward"]]).double(), kl=kl,
            entropy=torch.full((1, 1), step["entropy"]).double(), memory={"safe": state},
        )  # fmt: skip
        penalty = rule(batch)
        after = rule.update(state, batch)
        assert penalty.item() == pytest.approx(step["penalty"], abs=1.1e-7)
        assert rule.threshold(after) == pytest.approx(step["threshold"], abs=1.1e-7)
        assert rule.phase(after) == step["phase"]
        (gradient,) = torch.autograd.grad(penalty, kl)
        assert bool(gradient.item() > 0) == (step["penalty"] > 0)  # the release's has none
        state = after
        phases.add(step["phase"])
    assert phases == {"WARMUP", "CLIMBING", "PLATEAU"}


@pytest.mark.parametrize("case", figures("adora_text")["cases"])
def test_adora_is_the_text_releases(case):
    length = torch.tensor(case["length"])
    batch = Batch.make(
        mask=torch.arange(8) < length[:, None], reward=torch.tensor(case["score"]).double(), group=case["group"],
        done=length < case["limit"],
    )  # fmt: skip
    out = Adora(inner=GroupNorm(eps=1e-6), threshold=1.01)(batch)[:, 0]
    torch.testing.assert_close(out, torch.tensor(case["advantage"]).double(), **SEVEN_DIGITS)


@pytest.mark.parametrize("case", figures("opo")["cases"])
def test_opo_is_verls(case):
    length = torch.tensor(case["length"])
    batch = Batch.make(
        mask=torch.arange(8) < length[:, None],
        reward=torch.tensor(case["score"]).double(),
        group=case["group"],
    )
    expected = torch.tensor(case["advantage"]).double()
    torch.testing.assert_close(LengthBaseline()(batch)[:, 0], expected, **SEVEN_DIGITS)
    torch.testing.assert_close(named("opo").credit(batch)[:, 0], expected, **SEVEN_DIGITS)
