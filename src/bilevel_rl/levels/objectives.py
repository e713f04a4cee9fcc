r"""Upper objectives f(x, pi): what the upper level minimises, as a sampled value, its gradient in x and in the policy.

On a batch y_1..y_N of the penalised policy an objective answers with

    value   the sample estimate of f
    loss    the same with a graph: its gradient in the rewards r_x(y_i), and in x itself where stored pairs enter
    bonus   [N] with   - grad_theta f = E[ (1/N) sum_i bonus_i grad log pi(y_i) ]
    pairs   the part of the same sum that comes from judged pairs, whose two rows decide each other's bonus

so that the penalised follower ascends J - w f by adding w * bonus to its rewards. When the batch is theta's and serves
both followers, `weights` are its importance ratios and the expectation above is under theta with those ratios.

A baseline for a row of a pair must know neither row, or it takes a share of the bonus away: left to a leave-one-out
within G rows of which all are judged, a bonus that the two split (`win_rate`) is counted G/(G-1) times, one that both
get (`preference`) (G-2)/(G-1) times.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.moved import renamed
from bilevel_rl.policy_gradient.segments import label, segment_sum

__getattr__ = renamed("bilevel_rl.levels.objectives", UpperObjective="SampledObjective")


@dataclasses.dataclass
class Sample:
    """What an objective may look at in one iteration.

    Attributes:
        rollout: N completions of all processes.
        rewards: [N] r_x(y), a leaf: differentiate `loss` through it.
        weights: [N] importance ratios; ones when the completions are the penalised policy's own.
        gold: [N] gold scores, or None.
        pairs: [M, 2] rows of the judged pairs, the preferred completion first; M may be 0.
        reward: r_x itself, for completions that are not in the batch.
        stored: (preferred, other) completions of this process from the stored preferences, or None.
        replayed: the same from the pairs that the judge labelled in earlier iterations, or None.
        stored_total, replayed_total: their number in all processes together.
        step: iteration.
        cost: [N] costs of the second judge, or None.
    """

    rollout: Any
    rewards: Tensor
    weights: Tensor
    gold: Tensor | None
    pairs: Tensor
    reward: Callable[[Any], Tensor]
    stored: tuple[Any, Any] | None = None
    stored_total: int = 0
    replayed: tuple[Any, Any] | None = None
    replayed_total: int = 0
    step: int = 0
    cost: Tensor | None = None


@dataclasses.dataclass(frozen=True)
class PairBonus:
    """Bonuses of judged pairs.

    Attributes:
        partner: [N] the other row of each row's pair; -1 without one.
        raw: [N] bonus as it is earned, 0 for rows without a pair.
        centred: [N] the same less a baseline from other pairs alone.
    """

    partner: Tensor
    raw: Tensor
    centred: Tensor

    def __add__(self, other: PairBonus) -> PairBonus:
        """Of two objectives on the same pairs."""
        return PairBonus(self.partner, self.raw + other.raw, self.centred + other.centred)

    def times(self, weight: float) -> PairBonus:
        """Of an objective with a weight."""
        return PairBonus(self.partner, weight * self.raw, weight * self.centred)


@dataclasses.dataclass
class Upper:
    """An objective's answer: see the module's head.

    Attributes:
        value: estimate of f from the batch, the same on every process.
        loss: None where f has no direct gradient in x.
        bonus: [N] what a row earns by itself.
        share: what this process's stored pairs add to the value; summed over processes.
        pairs: what judged pairs earn; None: nothing.
    """

    value: float
    loss: Tensor | None
    bonus: Tensor
    share: float = 0.0
    pairs: PairBonus | None = None

    @property
    def total(self) -> Tensor:
        """[N] bonus of each row, pairs' included."""
        return self.bonus if self.pairs is None else self.bonus + self.pairs.centred


class SampledObjective(Protocol):
    """A user's own objective: any object with `evaluate` and these flags.

    Attributes:
        needs_pairs: the judge is asked to label pairs each iteration.
        needs_gold: the gold scorer is called each iteration, and counts as labels.
        needs_stored: stored preference pairs are drawn each iteration.
        contrasts: both rows of a pair earn the same (optional; False where missing): a leave-one-out of such bonuses
            needs a third row of the same start.
        fits: f has a direct gradient in x (optional; True where missing).
    """

    needs_pairs: bool
    needs_gold: bool
    needs_stored: bool

    def evaluate(self, sample: Sample) -> Upper:
        """Estimate f and its gradients on one batch."""
        ...


@dataclasses.dataclass(frozen=True)
class Preference:
    r"""$f = -E\log\sigma(r_x(p, y_+) - r_x(p, y_-))$ on fresh pairs of the policy that a judge labels.

    The policy enters f through what it writes: each completion of a judged pair earns the bonus
    $\frac{N}{M}\rho_{partner}\log\sigma(\cdot)$, centred on the other pairs. Pairs replayed from earlier iterations
    enter the gradient in x alone.
    """

    needs_pairs: bool = True
    needs_gold: bool = False
    needs_stored: bool = False
    contrasts: ClassVar[bool] = True

    def quality(self, margin: Tensor) -> Tensor:
        """[M] what a pair is worth whose preferred row is rewarded by `margin` more."""
        return F.logsigmoid(margin)

    def evaluate(self, sample: Sample) -> Upper:
        """See `SampledObjective`."""
        bonus, pairs = torch.zeros_like(sample.rewards.detach()), None
        fresh, loss, value, share = len(sample.pairs), None, float("nan"), 0.0
        count = fresh + sample.replayed_total
        if fresh:
            first, second = sample.pairs.unbind(1)
            margin = self.quality(sample.rewards[first] - sample.rewards[second])
            weight = sample.weights[first] * sample.weights[second]
            weight = weight / weight.mean()
            value = -float((weight * margin.detach()).mean())
            loss = -(weight * margin).sum() / count
            u = margin.detach()
            others = (u.sum() - u) / (fresh - 1) if fresh > 1 else torch.zeros_like(u)
            scale = sample.rollout.size / fresh
            pairs = PairBonus(
                partners(sample.pairs, bonus), *(
                    bonus.index_add(0, first, sample.weights[second] * v * scale)
                    .index_add(0, second, sample.weights[first] * v * scale)
                    for v in (u, u - others)
                ),
            )  # fmt: skip
        if sample.replayed is not None and sample.replayed[0].size:
            margin = self.quality(sample.reward(sample.replayed[0]) - sample.reward(sample.replayed[1]))
            replay = -margin.sum() / count
            loss = replay if loss is None else loss + replay
            if not fresh:
                share = -float(margin.detach().sum()) / count
        if not fresh and count:
            value = 0.0
        return Upper(value, loss, bonus, share, pairs)


@dataclasses.dataclass(frozen=True)
class LabelLikelihood:
    r"""$f = -E_D\log\sigma(r_x(p, y_+) - r_x(p, y_-))$ on the pairs labelled so far, taken as data.

    The same estimate as `Preference` without its dependence on the policy. That dependence rewards *contrast*: a policy
    that writes one good and one bad completion makes labels easy to predict.
    """

    needs_pairs: bool = True
    needs_gold: bool = False
    needs_stored: bool = False

    def evaluate(self, sample: Sample) -> Upper:
        """See `SampledObjective`."""
        upper = Preference().evaluate(sample)
        return dataclasses.replace(upper, pairs=None)


@dataclasses.dataclass(frozen=True)
class WinRate:
    r"""$f = -E_{y \sim \pi, y' \sim \mu}[y \text{ beats } y']$, with $\mu$ the policy that wrote the batch, held fixed.

    Of each judged pair the winner earns $\frac{N}{2M}\frac12$ and the loser as much less: the win with its mean of one
    half taken off. The value against one's own completions is always one half and is reported as 0; x matters only
    through the policy that is optimal for it. A sum with `LabelLikelihood` uses each label for both.
    """

    needs_pairs: bool = True
    needs_gold: bool = False
    needs_stored: bool = False
    fits: ClassVar[bool] = False

    def evaluate(self, sample: Sample) -> Upper:
        """See `SampledObjective`."""
        nothing = torch.zeros_like(sample.rewards.detach())
        if not len(sample.pairs):
            return Upper(0.0, None, nothing)
        winner, loser = sample.pairs.unbind(1)
        share = torch.full_like(nothing[winner], sample.rollout.size / (4 * len(sample.pairs)))
        earned = nothing.index_add(0, winner, share).index_add(0, loser, -share)
        return Upper(0.0, None, nothing, pairs=PairBonus(partners(sample.pairs, nothing), earned, earned))


@dataclasses.dataclass(frozen=True)
class StoredPreference:
    r"""$f = -E_D\log\sigma(r_x(p, y_+) - r_x(p, y_-))$ on stored pairs: it does not depend on the policy."""

    needs_pairs: bool = False
    needs_gold: bool = False
    needs_stored: bool = True

    def evaluate(self, sample: Sample) -> Upper:
        """See `SampledObjective`."""
        bonus = torch.zeros_like(sample.rewards.detach())
        if not sample.stored_total:
            return Upper(float("nan"), None, bonus)
        if sample.stored is None:  # more processes than pairs
            return Upper(0.0, None, bonus)
        loss = -_margin(sample.reward, sample.stored).sum() / sample.stored_total
        return Upper(0.0, loss, bonus, float(loss.detach()))


@dataclasses.dataclass(frozen=True)
class Gold:
    r"""$f = -E_\pi[\mathrm{gold}(p, y)]$: x matters only through the policy that is optimal for it."""

    needs_pairs: bool = False
    needs_gold: bool = True
    needs_stored: bool = False
    fits: ClassVar[bool] = False

    def evaluate(self, sample: Sample) -> Upper:
        """See `SampledObjective`."""
        assert sample.gold is not None
        weights = sample.weights / sample.weights.sum()
        return Upper(-float((weights * sample.gold).sum()), None, sample.gold.to(sample.weights))


@dataclasses.dataclass(frozen=True)
class Mixture:
    """A weighted sum of objectives."""

    terms: tuple[tuple[float, Any], ...]

    @property
    def needs_pairs(self) -> bool:
        """Whether a term does."""
        return any(term.needs_pairs for _, term in self.terms)

    @property
    def needs_gold(self) -> bool:
        """Whether a term does."""
        return any(term.needs_gold for _, term in self.terms)

    @property
    def needs_stored(self) -> bool:
        """Whether a term does."""
        return any(term.needs_stored for _, term in self.terms)

    @property
    def contrasts(self) -> bool:
        """Whether a term does."""
        return any(getattr(term, "contrasts", False) for _, term in self.terms)

    def evaluate(self, sample: Sample) -> Upper:
        """See `SampledObjective`."""
        parts = [(weight, term.evaluate(sample)) for weight, term in self.terms]
        losses = [weight * part.loss for weight, part in parts if part.loss is not None]
        bonus = sum((weight * part.bonus for weight, part in parts), torch.zeros_like(sample.weights))
        value, share = (sum(w * getattr(part, name) for w, part in parts) for name in ("value", "share"))
        pairs = None
        for weight, part in parts:
            if part.pairs is not None:
                own = part.pairs.times(weight)
                pairs = own if pairs is None else pairs + own
        return Upper(value, sum(losses) if losses else None, bonus, share, pairs)


@dataclasses.dataclass(frozen=True)
class Calibration(Preference):
    r"""$f = E(1 - \sigma(r_x(p, y_+) - r_x(p, y_-)))^2$: the Brier score of the reward on what the policy writes.

    A proper score, like the likelihood of `Preference`, but bounded: a confident mistake costs one and not its margin.
    """

    def quality(self, margin: Tensor) -> Tensor:
        """See `Preference`."""
        return -(1 - margin.sigmoid()).square()


@dataclasses.dataclass(frozen=True)
class WorstPrompts:
    r"""$f = -\mathrm{CVaR}_a$ of $E[\mathrm{gold} | p]$ over prompts: the mean over the worst share a of an iteration's.

    With $a \to 0$ it is the worst prompt. The worst are found by the sampled means of their groups, which a small group
    makes too low (a bias of the selection that shrinks as 1/sqrt(group)).

    Args:
        share: a, in (0, 1]; at least one prompt counts.

    References:
        Rockafellar and Uryasev, "Optimization of conditional value-at-risk", 2000.
    """

    share: float = 0.25

    needs_pairs: ClassVar[bool] = False
    needs_gold: ClassVar[bool] = True
    needs_stored: ClassVar[bool] = False
    fits: ClassVar[bool] = False

    def evaluate(self, sample: Sample) -> Upper:
        """See `SampledObjective`."""
        assert sample.gold is not None
        index, count = label(sample.rollout.group)
        weight = sample.weights.to(sample.gold)
        mass = segment_sum(weight, index, count)
        means = segment_sum(weight * sample.gold, index, count) / mass
        tail = max(1, round(self.share * count))
        worst = torch.zeros_like(means).index_fill(0, means.argsort(stable=True)[:tail], count / tail)
        value = -float((worst * means).mean())
        return Upper(value, None, (worst[index] * sample.gold).to(sample.weights))


class Constrained:
    r"""f with the constraint $E_\pi[\mathrm{cost}] \le c$, its multiplier a part of x.

    $$\min_x \max_{m} f + \lambda\,(E_\pi[\mathrm{cost}] - c), \qquad \lambda = \mathrm{softplus}(s\,m)$$

    x descends, m ascends with the same step: `loss` holds m's term with the other sign.

    Args:
        inner: f.
        bound: c, in the unit of the cost.
        scale: s; a step of x moves lambda s times as far (ours: 30).
        start: lambda before the first step.

    Attributes:
        multiplier: m, a parameter that joins x.
    """

    needs_cost = True

    def __init__(self, inner: Any, bound: float, scale: float = 30.0, start: float = 0.1) -> None:
        self.inner, self.bound, self.scale = inner, bound, scale
        self.multiplier = torch.nn.Parameter(torch.tensor([math.log(math.expm1(start)) / scale]))

    def __getattr__(self, name: str) -> Any:
        if name in ("needs_pairs", "needs_gold", "needs_stored"):
            return getattr(self.inner, name)
        if name in ("contrasts", "fits"):
            return getattr(self.inner, name, name == "fits")
        raise AttributeError(name)

    @property
    def price(self) -> float:
        """lambda."""
        return float(F.softplus(self.scale * self.multiplier.detach()))

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """What joins x."""
        return {"multiplier": self.multiplier}

    def evaluate(self, sample: Sample) -> Upper:
        """See `SampledObjective`."""
        upper: Upper = self.inner.evaluate(sample)
        if sample.cost is None:  # the labels are spent
            return upper
        weights = sample.weights / sample.weights.sum()
        excess = float((weights * sample.cost).sum()) - self.bound
        price = F.softplus(self.scale * self.multiplier).sum()
        dual = -price * excess
        loss = dual if upper.loss is None else upper.loss + dual.to(upper.loss)
        bonus = upper.bonus - self.price * sample.cost.to(upper.bonus)
        return dataclasses.replace(upper, value=upper.value + self.price * excess, loss=loss, bonus=bonus)


ALL: Mapping[str, Any] = {
    "label_likelihood": LabelLikelihood(), "win_rate": WinRate(), "preference": Preference(),
    "stored_preference": StoredPreference(), "gold": Gold(), "calibration": Calibration(), "worst_prompts": WorstPrompts(),
}  # fmt: skip


def make_objective(weights: Mapping[str, float], tail: float = 0.25) -> Any:
    """The objective that a configuration names: one, or a weighted sum.

    Args:
        weights: by name.
        tail: share of the prompts that `worst_prompts` looks at.

    Raises:
        InvalidConfig: none, an unknown name, or a weight that is 0 or not finite.

    Example:
        >>> make_objective({"gold": 1.0})
        Gold(needs_pairs=False, needs_gold=True, needs_stored=False)
    """
    for name in weights:
        if name not in ALL:
            raise InvalidConfig(
                message("config.objective", f"the unknown objective {name!r}", did_you_mean(name, ALL),
                        "Choose among these, or pass objective= in Python")
            )  # fmt: skip
    if not weights or not all(math.isfinite(v) and v != 0 for v in weights.values()):
        raise InvalidConfig(
            message("config.objective", repr(dict(weights)), "at least one objective with a weight other than 0",
                    "Write `objective: {label_likelihood: 1.0}`")
        )  # fmt: skip
    known = {**ALL, "worst_prompts": WorstPrompts(tail)}
    if len(weights) == 1 and next(iter(weights.values())) == 1.0:
        return known[next(iter(weights))]
    return Mixture(tuple((weight, known[name]) for name, weight in weights.items()))


def partners(pairs: Tensor, like: Tensor) -> Tensor:
    """[N] the other row of each row's pair, -1 without one.

    Example:
        >>> partners(torch.tensor([[2, 0]]), torch.zeros(3)).tolist()
        [2, -1, 0]
    """
    first, second = pairs.to(like.device).unbind(1)
    found = torch.full(like.shape, -1, dtype=torch.long, device=like.device)
    return found.index_copy(0, first, second).index_copy(0, second, first)


def _margin(reward: Callable[[Any], Tensor], pairs: tuple[Any, Any]) -> Tensor:
    return F.logsigmoid(reward(pairs[0]) - reward(pairs[1]))
