"""What every component must do, whatever its method: one matrix over all `ALL` tuples."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from bilevel_rl.errors import InvalidConfig
from bilevel_rl.policy_gradient import credit, losses, regularizers, reward, select, steps, weigh
from bilevel_rl.policy_gradient.batch import PROVIDERS, Batch, paid_at_end
from bilevel_rl.policy_gradient.checks import SETTING, check_component, scope_of, with_memory
from bilevel_rl.policy_gradient.component import Card, Effect, Scope, Slot, Status, parts
from bilevel_rl.policy_gradient.credit import GroupNorm, LeaveOneOut
from bilevel_rl.policy_gradient.losses.unified import ClipMask, Unified, behaviour, itself, one
from bilevel_rl.policy_gradient.setting import configured
from bilevel_rl.references import BIBTEX

PACKAGES = {
    Slot.CREDIT: credit,
    Slot.WEIGH: weigh,
    Slot.LOSS: losses,
    Slot.REGULAR: regularizers,
    Slot.REWARD: reward,
    Slot.SELECT: select,
}
TOKEN_SLOTS = (Slot.CREDIT, Slot.WEIGH)
SCALAR_SLOTS = (Slot.LOSS, Slot.REGULAR)

# every component with its defaults, and the settings whose code path differs
INSTANCES = [cls() for package in PACKAGES.values() for cls in package.ALL] + [
    credit.EMPG(inner=credit.Adora(inner=GroupNorm())),
    credit.BatchNorm(inner=credit.GroupMean()),
    credit.Gate(gate=1.0, mix=lambda share: (share, 1 - share)),
    credit.HierarchyOfGroups(scale=False, base=GroupNorm(), drop_zeros=False),
    credit.Adora(release="vision"),
    credit.Episode(scale=True, over="steps"),
    credit.StepGroups(scale=True),
    credit.GPG(count="score"),
    credit.GroupMean() + 0.5 * credit.StepGroups(),
    credit.Greedy(to_go=False),
    credit.GroupNorm(over="batch"),
    credit.Decoupled(weights=(1.0, 0.5)),
    credit.OptimalBaseline(leave_one_out=False),
    credit.LengthBaseline(leave_one_out=True),
    credit.Polychromic(size=2, additive=0.5),
    credit.SegmentChain(threshold=0.5, interval=1),
    credit.StepPotential(first_step=True),
    credit.StepLevel(normalise=True),
    credit.Alignment(inner=LeaveOneOut()),
    losses.Clipped(high=0.28, dual=3.0),
    losses.Precision(beta=0.5, top=0.1, tail=-0.1, k=2),
    losses.PairwisePPO(clip=None),
    losses.PairwisePPO(joint=True),
    losses.MirrorDescent(anneal=False),
    losses.SequenceRatio(by_token=True),
    losses.SequenceRatio(normalised=False),
    losses.AdvantageMatching(weighting="t", order="sum_first", clip=0.2),
    losses.AdvantageMatching(weighting="huber"),
    regularizers.SampledKL(corrected=True),
    Unified(denominator=itself),
    Unified(denominator=behaviour),
    Unified(denominator=one, stable=ClipMask()),
    reward.Coverage(weights=(1.0, 2.0, 0.5, 0.1), replace=False),
    select.MostVaried(across=0.5),
    weigh.ClipCovariance(share=0.2, low=0.0),
    weigh.Confident(below=0.3),
    regularizers.CovarianceKL(share=0.2),
]
INSTANCES = [configured(c, SETTING) for c in INSTANCES]  # limits that a run would give
NAMES = [f"{c.card.slot}-{c.card.name}-{k}" for k, c in enumerate(INSTANCES)]
every = pytest.mark.parametrize("component", INSTANCES, ids=NAMES)
TOKENS = [c for c in INSTANCES if c.card.slot in TOKEN_SLOTS]
SCALARS = [c for c in INSTANCES if c.card.slot in SCALAR_SLOTS]


def only(*slots):
    chosen = [(c, n) for c, n in zip(INSTANCES, NAMES, strict=True) if c.card.slot in slots]
    return pytest.mark.parametrize("component", [c for c, _ in chosen], ids=[n for _, n in chosen])


def finite(value):
    if isinstance(value, Batch):
        return all(
            bool(value.inside(f).isfinite().all())
            for f in ("reward", "advantage")
            if value.get(f) is not None
        )
    return bool(value.isfinite().all())


def close(one, two, **kwargs):
    if isinstance(one, Batch):
        assert one.trajectory.tolist() == two.trajectory.tolist()
        one, two = one.inside("reward"), two.inside("reward")
    torch.testing.assert_close(one, two, **{"rtol": 1e-11, "atol": 1e-12, **kwargs})


# -- declarations -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slot", list(PACKAGES))
def test_every_class_is_listed_where_it_belongs(slot):
    for cls in PACKAGES[slot].ALL:
        assert cls.card.slot == slot
        assert cls.__doc__
        assert "References" in cls.__doc__


def test_names_are_unique_and_declarations_complete():
    classes = [cls for package in (*PACKAGES.values(), steps) for cls in package.ALL]
    names = [cls.card.name for cls in classes]
    assert len(set(names)) == len(names)
    for cls in classes:
        card = cls.card
        assert card.source, card.name
        assert set(card.cite) <= set(BIBTEX), card.name
        assert isinstance(card.effect, Effect)
        assert isinstance(card.status, Status)
        assert card.number is None or card.status is not Status.CLASSICAL, card.name
        own = {f.name for f in dataclasses.fields(Batch)}
        for field in card.needs:
            assert field in own or field in PROVIDERS, (card.name, field)
            assert field in PROVIDERS, (card.name, field)
        if card.slot in SCALAR_SLOTS:
            assert card.gradient, card.name
        if card.status is Status.INFERRED:
            assert "INFERRED" in cls.__doc__, card.name


def test_the_thirty_seven_of_the_catalogue_are_here():
    classes = [cls for package in (*PACKAGES.values(), steps) for cls in package.ALL]
    numbers = {cls.card.number for cls in classes} - {None}
    assert numbers == {
        1, 2, 3, 5, 6, 7, 8, 9, 10, 11, 12, 15, 18, 20, 21, 24, 26, 28, 29, 31, 33, 38, 40, 45, 46, 49,
        50, 51, 52,
        55, 56, 59, 60, 65, 66, 67, 69,
    }  # fmt: skip
    assert len(numbers) == 37


# -- missing fields -----------------------------------------------------------------------------------------


@every
def test_a_missing_field_is_named_with_component_and_provider(component, batch):
    for part in parts(component):
        for field in part.card.needs:
            if field in ("reward", "group"):
                continue  # every batch has them
            without = (
                batch.replace(extras={k: v for k, v in batch.extras.items() if k != field})
                if field in batch.extras
                else batch.replace(**{field: None})
            )
            with pytest.raises(InvalidConfig) as error:
                part(without)
            text = str(error.value)
            assert part.card.name in text
            assert f"'{field}'" in text
            assert PROVIDERS[field].rstrip(".") in text


# -- masks and order ----------------------------------------------------------------------------------------


@every
def test_padding_changes_nothing(component, batch):
    batch = with_memory(component, batch)
    out, wide = component(batch), component(batch.pad(3))
    if isinstance(out, Batch):
        assert out.trajectory.tolist() == wide.trajectory.tolist()
        close(out.token_reward, wide.token_reward[:, :-3])
    elif out.ndim == 0:
        close(out, wide)
    else:
        close(out, wide[:, :-3])
        assert (wide[:, -3:] == 0).all()


@every
def test_what_the_padding_holds_is_never_read(component, batch):
    """NaN in the padding of the fixture against zeros there: the same result, and 0 outside the mask."""
    clean = batch.map(lambda x: torch.nan_to_num(x, nan=0.0) if x.is_floating_point() else x)
    nonsense = clean.replace(
        reward=torch.where(batch.mask[..., None], clean.reward, 7.0),
        turn=torch.where(batch.mask, batch.turn, 1),
        state_key=torch.where(batch.mask, batch.state_key, 9),
        target=torch.where(batch.mask, batch.get("target"), 0),
    )
    out = component(with_memory(component, batch))
    assert finite(out)
    other = component(with_memory(component, nonsense))
    if component.card.slot is Slot.REWARD:  # the old rewards of padded positions are passed through
        out, other = (torch.where(batch.mask[..., None], r, 0) for r in (out, other))
    close(out, other)
    if isinstance(out, torch.Tensor) and component.card.slot in TOKEN_SLOTS:
        assert (out[~batch.mask] == 0).all()


@every
def test_permuting_responses_permutes_results(component, batch):
    batch = with_memory(component, batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(3))
    out, moved = component(batch), component(batch.rows(order))
    if isinstance(out, Batch):
        assert sorted(out.trajectory.tolist()) == sorted(moved.trajectory.tolist())
    elif out.ndim == 0:
        close(out, moved)
    else:
        close(out[order], moved)


SEPARABLE = [(c, n) for c, n in zip(INSTANCES, NAMES, strict=True) if scope_of(c) is not Scope.BATCH]


@pytest.mark.parametrize("component", [c for c, _ in SEPARABLE], ids=[n for _, n in SEPARABLE])
def test_a_batch_is_its_parts(component, batch):
    """Units that the component does not compare (responses, or groups) can be computed apart."""
    batch = with_memory(component, batch)
    key = batch.group if scope_of(component) is Scope.GROUP else torch.arange(len(batch))
    out = component(batch)
    whole = batch.replace(tokens=float(batch.mask.sum()), sequences=float(len(batch)))
    pieces = [component(whole.rows(key == unit)) for unit in key.unique()]
    if isinstance(out, Batch):
        assert out.trajectory.tolist() == [i for p in pieces for i in p.trajectory.tolist()]
    elif out.ndim == 0:
        total = torch.stack(pieces).sum()
        # INPO is a mean over pairs, equally many in each group here
        close(out, total / len(pieces) if component.card.name == "inpo" else total)
    else:
        close(out, torch.cat(pieces))


# -- gradients ----------------------------------------------------------------------------------------------


@only(*SCALAR_SLOTS)
def test_gradients_flow_to_the_declared_fields_and_stay_inside_the_mask(component, batch):
    batch = with_memory(component, batch.replace(kl=batch.kl + 1.0, entropy=batch.entropy * 3))
    if component.card.name == "epo":  # outside its band, where bonus and penalty don't cancel
        batch = batch.replace(entropy=batch.entropy * 5, progress=0.25)
    assert component.card.gradient
    for field in component.card.gradient:
        leaf = batch.get(field).clone().requires_grad_()
        value = component(batch.replace(**{field: leaf}))
        assert value.ndim == 0
        (gradient,) = torch.autograd.grad(value, leaf)
        assert gradient.isfinite().all()
        assert gradient[batch.mask].abs().max() > 0
        assert (gradient[~batch.mask] == 0).all()


@only(*SCALAR_SLOTS)
def test_no_gradient_reaches_what_is_data(component, batch):
    batch = with_memory(component, batch)
    leaves = {}
    for field in ("old", "ref", "advantage", "weight", "reward", "behaviour"):
        leaves[field] = batch.get(field).clone().requires_grad_()
    anchor = {f: batch.get(f).clone().requires_grad_() for f in component.card.gradient}
    value = component(batch.replace(**leaves, **anchor))
    gradients = torch.autograd.grad(value, list(leaves.values()), allow_unused=True)
    assert all(g is None or (torch.nan_to_num(g) == 0).all() for g in gradients)


@only(*TOKEN_SLOTS, Slot.REWARD)
def test_decisions_carry_no_gradient(component, batch):
    wet = {f: batch.get(f).clone().requires_grad_() for f in ("logp", "entropy", "value", "kl", "advantage")}
    assert not component(with_memory(component, batch).replace(**wet)).requires_grad


# -- precision ----------------------------------------------------------------------------------------------


@every
def test_32_bit_stays_32_bit_and_agrees_with_64(component, batch):
    narrow = batch.to(dtype=torch.float32)
    out, small = component(with_memory(component, batch)), component(with_memory(component, narrow))
    if isinstance(out, Batch):
        assert out.trajectory.tolist() == small.trajectory.tolist()
        return
    assert small.dtype == torch.float32
    close(out.float(), small, rtol=2e-4, atol=2e-4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no accelerator")
@every
def test_an_accelerator_gives_the_same(component, batch):
    out = component(with_memory(component, batch))
    there = component(with_memory(component, batch).to("cuda"))
    if isinstance(out, Batch):
        assert out.trajectory.tolist() == there.trajectory.tolist()
    else:
        close(out, there.cpu(), rtol=1e-9, atol=1e-10)


# -- degenerate input ---------------------------------------------------------------------------------------


def equal_rewards(b):
    return b.replace(reward=paid_at_end(b.mask, torch.ones(len(b), 2, dtype=b.reward.dtype)))


def equal_rewards_that_do_not_sum_exactly(b):
    return b.replace(reward=paid_at_end(b.mask, torch.full((len(b), 2), 0.1, dtype=b.reward.dtype)))


def one_empty_response(b):
    mask = b.mask.clone()
    mask[0] = False
    return b.replace(mask=mask, length=mask.sum(1))


def all_empty(b):
    return b.replace(mask=torch.zeros_like(b.mask), length=torch.zeros_like(b.length))


def single_tokens(b):
    mask = torch.zeros_like(b.mask)
    mask[:, 0] = True
    return b.replace(mask=mask, length=mask.sum(1))


def impossible_tokens(b):
    """Log-probability -inf: under the policy, the sampler, the reference, and all of them."""
    logp, old, ref = b.logp.clone(), b.old.clone(), b.ref.clone()
    behaviour_ = b.get("behaviour").clone()
    logp[0, 0] = old[1, 0] = ref[2, 0] = logp[3, 0] = old[3, 0] = ref[3, 0] = behaviour_[4, 0] = -torch.inf
    logits = b.get("logits").clone()
    logits[0, 0, 1:] = -torch.inf
    return b.replace(logp=logp, old=old, ref=ref, behaviour=behaviour_, logits=logits)


def groups_of_one(b):
    return b.replace(group=torch.arange(len(b)))


def one_response(b):
    return b.rows(torch.tensor([0]))


def no_response(b):
    return b.rows(torch.tensor([], dtype=torch.long))


def constant_fields(b):
    """Zero variance everywhere: entropies, values, advantages, durations, norms."""
    fields = ("entropy", "value", "advantage", "kl", "duration", "score_norm", "weight", "sensitivity")
    return b.replace(**{f: torch.zeros_like(b.get(f)) for f in fields}, reward=torch.zeros_like(b.reward))


def all_truncated(b):
    return b.replace(done=torch.zeros_like(b.done), truncated=torch.ones_like(b.truncated))


def huge_rewards(b):
    return b.replace(reward=b.reward * 1e8)


def only_demonstrations(b):
    return b.replace(
        demonstration=torch.ones(len(b), dtype=torch.bool), winner=torch.ones(len(b), dtype=torch.bool)
    )


DEGENERATE = [
    equal_rewards,
    equal_rewards_that_do_not_sum_exactly, one_empty_response, all_empty, single_tokens,
    impossible_tokens, groups_of_one, one_response, no_response, constant_fields, all_truncated, huge_rewards,
    only_demonstrations,
]  # fmt: skip


@pytest.mark.parametrize("change", DEGENERATE, ids=[f.__name__ for f in DEGENERATE])
@every
def test_degenerate_input_has_a_finite_result(component, change, batch):
    bad = with_memory(component, change(batch))
    leaves = {f: bad.get(f).clone().requires_grad_() for f in component.card.gradient}
    out = component(bad.replace(**leaves))
    assert finite(out)
    if component.card.slot in TOKEN_SLOTS:
        assert (out[~bad.mask] == 0).all()
    for leaf in leaves.values():
        if out.requires_grad:
            (gradient,) = torch.autograd.grad(out, leaf, retain_graph=True, allow_unused=True)
            assert gradient is None or gradient.isfinite().all()


RELATIVE = {
    "leave_one_out", "group_norm", "group_mean", "dvao", "adora", "optimal_baseline",
        "length_baseline", "salt",
    "adhint_credit", "replay_credit",
}  # fmt: skip
COMPARING = [(c, n) for c, n in zip(INSTANCES, NAMES, strict=True) if c.card.name in RELATIVE]


@pytest.mark.parametrize("change", [equal_rewards, equal_rewards_that_do_not_sum_exactly, groups_of_one])
@pytest.mark.parametrize("component", [c for c, _ in COMPARING], ids=[n for _, n in COMPARING])
def test_credit_relative_to_a_group_is_zero_where_there_is_nothing_to_compare(component, change, batch):
    out = component(change(batch))
    quotient = component.card.name in ("optimal_baseline", "length_baseline")  # of sums: rounding remains
    assert out.abs().max() <= (1e-14 if quotient else 0)


# -- the public check, on the library's components and on broken ones ---------------------------------------


@every
def test_the_public_check_finds_nothing_wrong(component, batch):
    if component.card.name == "epo":  # its bonus and its penalty cancel at the start of training
        batch = batch.replace(progress=0.25)
    assert check_component(component, batch) == []


def broken(name, function, slot=Slot.CREDIT, scope=Scope.GROUP, gradient=()):
    """A component that does one thing wrong."""
    body = {
        "card": Card(name, slot, Effect.CHANGES, scope=scope, gradient=gradient),
        "__call__": lambda self, batch: function(batch),
    }
    return type(name, (), body)()


def running_sum(b):
    return b.spread(b.score.cumsum(0))


BROKEN = [
    (broken("by_width", lambda b: b.spread(b.score / b.mask.shape[1])), "padding is added"),
    (broken("careless", lambda b: b.spread(torch.nan_to_num(b.logp).sum(1))), "padding holds"),
    (broken("ordered", running_sum), "order"),
    (broken("wide", lambda b: b.spread(b.score - b.score.mean())), "more than a group"),
    (broken("divides", lambda b: b.spread(b.score / (b.score - b.score[:1]))), "equal rewards"),
    (broken("wet", lambda b: b.inside("logp")), "carries a gradient"),
    (
        broken("dry", lambda b: b.inside("logp").detach().sum() + 0 * b.inside("logp").sum(), Slot.LOSS,
               gradient=("logp",)),
        "no gradient",
    ),
    (
        broken("leaks", lambda b: torch.nan_to_num(b.logp.clamp(min=-50)).sum() + b.logp.nan_to_num(1.0)[:, 1].sum(),
               Slot.LOSS, gradient=("logp",)),
        "padding holds",
    ),
]  # fmt: skip


@pytest.mark.parametrize(("component", "sentence"), BROKEN, ids=[c.card.name for c, _ in BROKEN])
def test_the_public_check_finds_what_is_wrong(component, sentence):
    assert any(sentence in line for line in check_component(component)), check_component(component)
