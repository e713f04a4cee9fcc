"""The record and the reductions that every component stands on."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient import segments
from bilevel_rl.policy_gradient.aggregate import PerConstant, per_sequence, per_token, sum_of_tokens
from bilevel_rl.policy_gradient.batch import Batch, paid_at_end


def test_reward_is_paid_at_the_last_action_token_and_never_in_padding():
    mask = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [1, 1, 1, 1]]).bool()
    paid = paid_at_end(mask, torch.tensor([[2.0], [3.0], [5.0]]))[..., 0]
    assert paid.tolist() == [[0, 0, 2, 0], [0, 0, 0, 0], [0, 0, 0, 5]]


def test_score_ignores_what_lies_outside_the_mask():
    b = Batch.make(mask=[[1, 0]], reward=torch.tensor([[1.0, torch.nan]]))
    assert b.score.tolist() == [1.0]


@pytest.mark.parametrize(
    ("fields", "name"),
    [
        ({"mask": [1, 0], "reward": [1.0]}, "mask"),
        ({"mask": [[1, 0]], "reward": [1.0], "logp": torch.zeros(1, 3)}, "logp"),
        ({"mask": [[1, 0]], "reward": [1.0], "group": [0, 1]}, "group"),
        ({"mask": [[1, 0]], "reward": [1.0], "logpp": torch.zeros(1, 2)}, "logpp"),
    ],
)
def test_a_wrong_field_is_named(fields, name):
    with pytest.raises(InvalidConfig, match=name):
        Batch.make(**fields)


def test_check_finite_names_the_field_and_allows_log_zero(batch):
    batch.check_finite()  # NaN in the padding is fine
    logp = batch.logp.clone()
    logp[0, 0] = -torch.inf
    batch.replace(logp=logp).check_finite()
    logp[0, 0] = torch.nan
    with pytest.raises(InvalidConfig, match=r"Batch\.logp"):
        batch.replace(logp=logp).check_finite()
    reward = batch.reward.clone()
    reward[0, 0, 0] = torch.inf
    with pytest.raises(InvalidConfig, match=r"Batch\.reward"):
        batch.replace(reward=reward).check_finite()


def test_rows_cat_and_pad_are_inverse(batch):
    parts = [batch.rows(torch.arange(0, 5)), batch.rows(torch.arange(5, 12)).pad(2)]
    joined = Batch.cat(parts)
    assert joined.mask.shape == (12, 9)
    for name in batch.fields:
        if isinstance(batch.get(name), torch.Tensor):
            before, after = batch.pad(2).get(name), joined.get(name)
            torch.testing.assert_close(before, after, equal_nan=True)


def test_to_changes_only_floating_point(batch):
    half = batch.to(dtype=torch.float32)
    assert half.logp.dtype == torch.float32
    assert half.group.dtype == torch.long
    assert half.mask.dtype == torch.bool


@pytest.mark.parametrize("aggregate", [per_token, per_sequence, sum_of_tokens, PerConstant(11.0)])
def test_losses_of_parts_add_up(batch, aggregate):
    values = batch.logp.square()
    whole = aggregate(values, batch)
    b = batch.replace(advantage=values)
    assert sum(aggregate(p.advantage, p) for p in b.split(5)).item() == pytest.approx(whole.item(), rel=1e-14)
    widened = b.pad(3)
    assert aggregate(widened.advantage, widened).item() == pytest.approx(whole.item(), rel=1e-14)


def test_the_denominators_differ_as_documented():
    b = Batch.make(mask=[[1, 1, 1], [1, 0, 0]], reward=[0.0, 0.0])
    v = torch.tensor([[1.0, 1.0, 1.0], [5.0, 9.0, 9.0]])
    assert per_token(v, b).item() == pytest.approx(8 / 4)
    assert per_sequence(v, b).item() == pytest.approx((1 + 5) / 2)
    assert sum_of_tokens(v, b).item() == pytest.approx(8 / 2)
    assert PerConstant(4.0)(v, b).item() == pytest.approx(8 / 8)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(-3, 3), st.integers(0, 2), st.floats(-5, 5)), min_size=1, max_size=30))
def test_segment_reductions_against_dictionaries(rows):
    a, b, x = (torch.tensor(column) for column in zip(*rows, strict=True))
    x = x.double()
    index, count = segments.label(a, b)
    members: dict = {}
    for key, value in zip(zip(a.tolist(), b.tolist(), strict=True), x.tolist(), strict=True):
        members.setdefault(key, []).append(value)
    assert count == len(members)
    for key, i in zip(zip(a.tolist(), b.tolist(), strict=True), index.tolist(), strict=True):
        values = torch.tensor(members[key]).double()
        assert segments.segment_sum(x, index, count)[i].item() == pytest.approx(
            values.sum().item(), abs=1e-12
        )
        assert segments.segment_mean(x, index, count)[i].item() == pytest.approx(
            values.mean().item(), abs=1e-12
        )
        assert segments.segment_max(x, index, count)[i] == values.max()
        assert segments.segment_min(x, index, count)[i] == values.min()
        assert segments.segment_std(x, index, count)[i].item() == pytest.approx(
            values.std(correction=0).item(), abs=1e-9
        )
    ranks = segments.rank_in_segment(x, index)
    for i in range(count):
        mine = index == i
        order = x[mine][torch.argsort(ranks[mine])]
        assert sorted(ranks[mine].tolist()) == list(range(int(mine.sum())))
        assert (order[:-1] >= order[1:]).all()


def test_centred_is_exactly_zero_on_equal_members():
    x, group = torch.full((10,), 0.1, dtype=torch.float64), torch.zeros(10, dtype=torch.long)
    assert segments.segment_mean(x, group, 1).item() != 0.1  # ten tenths don't sum to one
    assert segments.centred(x, group, 1).tolist() == [0.0] * 10
    assert segments.segment_std(x, group, 1, ddof=1).tolist() == [0.0]


def test_empty_masks_have_means():
    none = torch.zeros(2, 2, dtype=torch.bool)
    x = torch.full((2, 2), torch.nan)
    assert segments.masked_mean(x, none).item() == 0
    assert segments.masked_mean(x, none, 1).tolist() == [0, 0]
    assert segments.masked_std(x, none).item() == 0
    assert (
        segments.label_tokens(Batch.make(mask=none, reward=[0.0, 0.0]), torch.zeros(2, dtype=torch.long))[1]
        == 0
    )


def test_label_tokens_reads_only_the_mask(batch):
    labels, count = segments.label_tokens(batch, batch.group, batch.turn)
    assert labels[~batch.mask].unique().tolist() == [count]
    inside = torch.stack([batch.group[:, None].expand_as(batch.turn), batch.turn], -1)[batch.mask]
    assert count == len(inside.unique(dim=0))


def test_noise_is_uniform_reproducible_and_follows_its_rows(batch):
    noise = segments.token_noise(batch, seed=3)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(0))
    assert torch.equal(segments.token_noise(batch.rows(order), 3), noise[order])
    assert not torch.equal(segments.token_noise(batch, 4), noise)
    assert not torch.equal(segments.token_noise(batch.replace(iteration=1), 3), noise)
    many = segments.uniform_hash(1, torch.arange(400)[:, None], torch.arange(500)[None])
    assert many.min() >= 0
    assert many.max() < 1
    # 200,000 uniforms: the mean within 4.5 standard errors, all deciles within 4.5 of theirs
    assert abs(many.mean().item() - 0.5) < 4.5 * (1 / 12 / many.numel()) ** 0.5
    share = torch.histc(many, 10, 0, 1) / many.numel()
    assert (share - 0.1).abs().max() < 4.5 * (0.09 / many.numel()) ** 0.5
    neighbours = torch.corrcoef(torch.stack([many[:, :-1].flatten(), many[:, 1:].flatten()]))[0, 1]
    assert abs(neighbours.item()) < 4.5 / many.numel() ** 0.5
