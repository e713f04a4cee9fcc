"""Public checks for components, the library's own and those written elsewhere: what every component must do."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.policy_gradient.batch import Batch, paid_at_end
from bilevel_rl.policy_gradient.component import Card, Scope, Slot, needs_of, parts
from bilevel_rl.policy_gradient.setting import Setting, configured

VOCABULARY = 5
SETTING = Setting(epochs=2, group=4, max_new_tokens=7)  # what components that ask for it are checked in


def random_batch(seed: int = 0, prompts: int = 3, samples: int = 4, width: int = 7, terms: int = 2) -> Batch:
    """Responses with a gap in their masks (an observation), every field and extra, NaN in the padding."""
    g = torch.Generator().manual_seed(seed)
    n = prompts * samples

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=g, dtype=torch.float64)

    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(*shape, generator=g, dtype=torch.float64)

    def integers(high: int, *shape: int) -> torch.Tensor:
        return torch.randint(high, shape, generator=g)

    length = 2 + integers(width - 1, n)
    mask = torch.arange(width) < length[:, None]
    mask[:, 1] = False  # an observation between the first action and the rest
    logits = normal(n, width, VOCABULARY)
    law = logits.log_softmax(-1)
    token = integers(VOCABULARY, n, width)
    logp = law.gather(-1, token[..., None])[..., 0]
    turn = ((torch.arange(width) >= 2).long() + (torch.arange(width) >= 4).long()).expand(n, width)
    group = torch.arange(prompts).repeat_interleave(samples)
    noise = torch.where(mask, 0, torch.nan)

    def by_turn(values: torch.Tensor) -> torch.Tensor:
        return values.gather(1, turn)

    winner = torch.arange(n) % 2 == 0
    return Batch.make(
        mask=mask,
        reward=paid_at_end(mask, normal(n, terms)),
        group=group,
        trajectory=torch.arange(n) + 100,
        done=integers(4, n) > 0,
        logp=logp + noise,
        old=logp + 0.3 * normal(n, width) + noise,
        ref=logp + 0.3 * normal(n, width) + noise,
        entropy=-(law.exp() * law).sum(-1) + noise,
        value=normal(n, width) + noise,
        kl=4 * normal(n, width).square() + noise,  # large enough for penalties above a threshold
        advantage=normal(n, width) + noise,
        weight=uniform(n, width) + noise,
        turn=turn,
        state_key=by_turn(integers(3, n, 3)),
        action_key=by_turn(integers(2, n, 3)),
        answer=integers(3, n),
        duration=uniform(n) + 0.1,
        score_norm=uniform(n, width) + noise,
        switch=by_turn(integers(2, n, 3)).bool(),
        value_high=normal(n, width) + noise,
        confidence=by_turn(uniform(n, 3)) + noise,
        accuracy=by_turn(uniform(n, 3)) + noise,
        other_advantage=normal(n, width) + noise,
        predicted_gain=0.5 * normal(n, width) + noise,
        predicted_shift=0.1 * uniform(n, width) + noise,
        hint=(torch.arange(width) < 3).expand(n, width) & winner[:, None],
        hinted=winner,
        replayed=torch.arange(n) % 5 == 0,
        baseline=normal(n),
        prompt_value=uniform(prompts)[group],
        demonstration=torch.arange(n) % samples == 0,
        prefix_value=normal(n, width) + noise,
        sensitivity=normal(n, 3),
        cover=integers(2, n, width, 4).bool(),
        behaviour=logp + 0.3 * normal(n, width) + noise,
        target=token,
        logits=logits + noise[..., None],
        winner=winner,
        path=torch.stack([torch.arange(n) % samples // 2, torch.arange(n) % samples], 1),
        depth=(torch.arange(width) >= 4).long().expand(n, width),
        final_value=normal(n),
        window_start=integers(4, n),
        hidden=normal(n, width, 3) + noise[..., None],
        start_features=normal(prompts, 3)[group],
        completions=token,
        pending=torch.arange(n) % 3 == 0,
        **_of_a_flow(normal(3, n, width).square() + 0.1 + noise, uniform(n, width) + noise),
        **dict.fromkeys(("demonstrations", "gold_answers"), torch.ones(n)),
    )


def _of_a_flow(errors: Tensor, times: Tensor) -> dict[str, Tensor]:
    """What a flow says of its samples: three errors [3, N, T], and the times at which they are taken."""
    return {
        "matching_error": errors[0], "matching_error_old": errors[1], "velocity_gap": errors[2], "matching_time": times,
    }  # fmt: skip


def scope_of(component: Any) -> Scope:
    """The widest scope of a component and of what it wraps."""
    order = [Scope.RESPONSE, Scope.GROUP, Scope.BATCH]
    widest = max((order.index(part.card.scope) for part in parts(component)), default=0)
    wide = getattr(component, "normalise", False) or getattr(component, "across", 1) < 1
    if wide or any(getattr(part, "over", "") == "batch" for part in parts(component)):
        return Scope.BATCH
    return order[widest]


def with_memory(component: Any, batch: Batch) -> Batch:
    """The batch with what a stateful component remembers after having seen it once."""
    if not hasattr(component, "init"):
        return batch
    return batch.replace(memory={component.card.name: component.update(component.init(), batch)})


def check_component(component: Any, batch: Batch | None = None) -> list[str]:
    """Sentences, one for each property that a component breaks; empty when it is sound. It reports, and raises nothing.

    Checked: there is a card, and the batch has what it needs; padding and what it holds change nothing; permuting
    responses permutes results; units that it doesn't compare can be computed apart; results are finite on equal
    rewards, empty masks and impossible tokens; decisions carry no gradient; a loss's gradient reaches its declared
    fields, is finite and stays inside the mask.

    Args:
        component: anything with a `card` that can be called on a batch.
        batch: data with every field it needs; `random_batch()` when missing.

    Example:
        >>> from bilevel_rl.policy_gradient.credit import GroupNorm
        >>> check_component(GroupNorm())
        []
    """
    if not isinstance(getattr(component, "card", None), Card) or not callable(component):
        return [f"{type(component).__name__} is no component: it needs `card`, a Card, and `__call__`"]
    name = f"{component.card.slot} '{component.card.name}'"
    if component.card.slot in (Slot.STEP, Slot.ROLLOUT):
        return [f"{name} takes no batch: this check does not apply to a {component.card.slot}"]
    start: list[Batch] = []
    broken = list(_tried(lambda: _begin(component, batch, start), name))
    if broken:
        return broken
    ready = configured(component, SETTING)
    for check in CHECKS:
        broken += _tried(functools.partial(check, ready, start[0]), name)
    return broken


def _begin(component: Any, batch: Batch | None, start: list[Batch]) -> Iterator[str]:
    """The batch to check on, put into `start`, or why there is none."""
    component, batch = configured(component, SETTING), random_batch() if batch is None else batch
    missing = [field for part in parts(component) for field in needs_of(part) if not batch.has(field)]
    if missing:
        yield f"needs '{missing[0]}', which the batch lacks: give check_component a batch with it"
        return
    start.append(with_memory(component, batch))
    component(start[0])


def _tried(check: Callable[[], Iterator[str]], name: str) -> Iterator[str]:
    """The sentences of a check under the component's name; what it raises becomes one."""
    try:
        for sentence in check():
            yield f"{name} {sentence}"
    except Exception as error:  # whatever the component raises
        yield f"{name} raises {type(error).__name__}: {error}"


def _padding(component: Any, batch: Batch) -> Iterator[str]:
    out = component(batch)
    if not _same(out, _cut(component(batch.pad(3)), 3)):
        yield "changes when padding is added"
    clean = batch.map(lambda x: torch.nan_to_num(x, nan=0.5) if x.is_floating_point() else x)
    if not _same(_inside(out, batch), _inside(component(clean), batch)):
        yield "reads what the padding holds"


def _order(component: Any, batch: Batch) -> Iterator[str]:
    out = component(batch)
    order = torch.randperm(len(batch), generator=torch.Generator().manual_seed(1))
    expected = out[order] if isinstance(out, Tensor) and out.ndim else out
    if not _same(expected, component(batch.rows(order)), order=False):
        yield "depends on the order of the responses"


def _units(component: Any, batch: Batch) -> Iterator[str]:
    out, scope = component(batch), scope_of(component)
    if not isinstance(out, Tensor) or not out.ndim or scope is Scope.BATCH:
        return
    key = batch.group if scope is Scope.GROUP else torch.arange(len(batch))
    pieces = [component(batch.rows(key == unit)) for unit in key.unique()]
    if not _same(out, torch.cat(pieces)):
        yield f"compares more than a {scope}, which is its declared scope"


def _degenerate(component: Any, batch: Batch) -> Iterator[str]:
    for name, change in DEGENERATE.items():
        bad = change(batch)
        try:
            result = component(bad)
        except Exception as error:  # whatever the component raises
            yield f"raises {type(error).__name__} on {name}: {error}"
            continue
        values = result.token_reward if isinstance(result, Batch) else _inside(result, bad)
        if not bool(values.isfinite().all()):
            yield f"isn't finite on {name}"


def _decision(component: Any, batch: Batch) -> Iterator[str]:
    if component.card.slot not in (Slot.CREDIT, Slot.WEIGH, Slot.REWARD):
        return
    names = [f for f in ("logp", "entropy", "value", "advantage") if batch.has(f)]
    wet = {f: batch.get(f).clone().requires_grad_() for f in names}
    if component(batch.replace(**wet)).requires_grad:
        yield "carries a gradient, but is a decision"


def _gradient(component: Any, batch: Batch) -> Iterator[str]:
    for field in component.card.gradient:
        leaf = batch.get(field).clone().requires_grad_()
        (g,) = torch.autograd.grad(component(batch.replace(**{field: leaf})), leaf)
        if not bool(g.isfinite().all()):
            yield f"has a gradient in '{field}' that isn't finite"
        if not bool((g[~batch.mask] == 0).all()):
            yield f"has a gradient in '{field}' outside the mask"
        if not bool((g[batch.mask] != 0).any()):
            yield f"has no gradient in '{field}', which it declares"


CHECKS: tuple[Callable[[Any, Batch], Iterator[str]], ...] = (
    _padding, _order, _units, _degenerate, _decision, _gradient,
)  # fmt: skip


def _equal_rewards(b: Batch) -> Batch:
    return b.replace(reward=paid_at_end(b.mask, torch.full((len(b), 2), 0.1, dtype=b.reward.dtype)))


def _empty(b: Batch) -> Batch:
    return b.replace(mask=torch.zeros_like(b.mask), length=torch.zeros_like(b.length))


def _impossible(b: Batch) -> Batch:
    changed = {}
    for k, name in enumerate(("logp", "old", "ref")):
        changed[name] = b.get(name).clone()
        changed[name][k, 0] = changed[name][3, 0] = -torch.inf
    return b.replace(**changed)


DEGENERATE: dict[str, Callable[[Batch], Batch]] = {
    "equal rewards": _equal_rewards,
    "empty masks": _empty,
    "impossible tokens": _impossible,
    "one response": lambda b: b.rows(torch.tensor([0])),
    "no response": lambda b: b.rows(torch.tensor([], dtype=torch.long)),
    "groups of one": lambda b: b.replace(group=torch.arange(len(b))),
}


def _cut(out: Any, extra: int) -> Any:
    if isinstance(out, Batch):
        return out.replace(reward=out.reward[:, :-extra], mask=out.mask[:, :-extra])
    return out if out.ndim == 0 else out[:, :-extra]


def _inside(out: Any, batch: Batch) -> Any:
    if isinstance(out, Batch) or out.ndim < 3:
        return out
    return torch.where(batch.mask[..., None], out, 0)  # rewards of padded positions are passed through


def _same(one: Any, two: Any, order: bool = True) -> bool:
    if isinstance(one, Batch):
        a, b = one.trajectory.tolist(), two.trajectory.tolist()
        return a == b if order else sorted(a) == sorted(b)
    return one.shape == two.shape and torch.allclose(one, two, rtol=1e-10, atol=1e-11, equal_nan=True)
