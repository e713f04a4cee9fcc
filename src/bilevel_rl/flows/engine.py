"""Flows as an engine of `levels`: one row is one sample, its T actions are those of the likelihood in use."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, InvalidProblem, message
from bilevel_rl.flows.likelihoods import Actions, Likelihood, Matching
from bilevel_rl.flows.velocities import euler
from bilevel_rl.levels.engine import POLICIES, REWARD, Engine, Scores

KEPT = ("flow_point", "flow_x", "flow_time", "flow_target")  # what a batch carries, so that its rows can be had again


@dataclasses.dataclass(frozen=True)
class FlowRows:
    """N samples.

    Attributes:
        drawn: the samples and their actions.
        group: [N] the prompt of each.
        condition: what the network sees of the prompt, [N, ...], a tuple of such, or None.
    """

    drawn: Actions
    group: Tensor
    condition: Any = None

    @property
    def point(self) -> Tensor:
        """[N, *D] the samples."""
        return self.drawn.point

    @property
    def size(self) -> int:
        return len(self.group)

    @property
    def mask(self) -> Tensor:
        return torch.ones_like(self.drawn.time)

    @property
    def lengths(self) -> Tensor:
        return torch.full((self.size,), self.drawn.time.shape[1], device=self.group.device)

    @property
    def ended(self) -> Tensor:
        return torch.ones(self.size, dtype=torch.bool, device=self.group.device)

    def rows(self, index: Any) -> FlowRows:
        return FlowRows(Actions(*(v[index] for v in self.drawn)), self.group[index], _taken(self.condition, index))


class FlowEngine(Engine):
    """Samples of a velocity network, their rewards, and what stands for their log-probabilities.

    Args:
        velocity: any `VelocityNetwork` that is an `nn.Module`; it trains in place. Its values now are the reference.
        reward: (points [N, *D], group [N]) -> [N]; an `nn.Module` with parameters is trained as x.
        shape: of one sample, D.
        conditions: what the network sees of each prompt, [prompts, ...], a tuple of such, or None.
        likelihood: what log-probabilities are.
        prompts: how many there are; from `conditions` where these are given.
        batch, group: samples of an iteration, and of one prompt in it.
        levels: 2 for a second follower beside theta, as the estimators shared and paired need.
        reference_decay: of the reference, an exponential average of theta's weights from iteration to iteration; 1: it stays
            where theta began.
        seed: of all that is drawn.

    Raises:
        InvalidConfig: a velocity that can't train, or sizes that do not fit.
        InvalidProblem: a velocity of another shape than its points, or one that is not finite.

    Example:
        >>> from bilevel_rl.flows import PlaneVelocity
        >>> engine = FlowEngine(PlaneVelocity(2), lambda x, group: -x.square().sum(-1), (2,), batch=8, group=4)
        >>> engine.score("policy", engine.sample("policy", 0)).logp.shape
        torch.Size([8, 6])
    """

    def __init__(
        self, velocity: nn.Module, reward: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...], *,
        conditions: Any = None, likelihood: Likelihood = Matching(), prompts: int = 1, batch: int = 64, group: int = 8,
        levels: int = 1, reference_decay: float = 1.0, seed: int = 0,
    ) -> None:  # fmt: skip
        likelihood.check()
        if not 0 <= reference_decay <= 1:
            raise InvalidConfig(
                message("FlowEngine.reference_decay", reference_decay, "it must be in [0, 1]; at 1 the reference stays",
                        "Use 1, or .99 for a reference that follows")
            )  # fmt: skip
        self.reference_decay = reference_decay
        self.likelihood, self.reward, self.shape, self.conditions = likelihood, reward, tuple(shape), conditions
        self.prompts = prompts if conditions is None else len(conditions[0] if isinstance(conditions, tuple) else conditions)
        self.batch, self.group, self.seed = batch, group, seed
        _check_sizes(velocity, batch, group, self.prompts)
        self.reference = copy.deepcopy(velocity).requires_grad_(False)
        self.velocities = {"policy": velocity} | ({"policy_l": copy.deepcopy(velocity)} if levels == 2 else {})
        self.x = dict(reward.named_parameters()) if isinstance(reward, nn.Module) else {}
        self.names = (*(role for role in POLICIES if role in self.velocities), *((REWARD,) if self.x else ()))
        self.differentiates = frozenset({"velocity_gap", *(("matching_error",) if likelihood.matches else ())})
        self._check_velocity(velocity)

    # -- the four questions ---------------------------------------------------------------------------------------

    def sample(self, role: str, k: int) -> FlowRows:
        first = next(self.velocities[role].parameters())
        generator = torch.Generator(first.device).manual_seed(self.seed * 1_000_003 + k)  # both followers' noise is one
        count = self.batch // self.group
        order = torch.randperm(self.prompts, generator=torch.Generator().manual_seed(self.seed * 1_000_003 + k))
        chosen = order.repeat(-(-count // self.prompts))[:count].sort().values
        group = chosen.repeat_interleave(self.group).to(first.device)
        condition = _taken(self.conditions, group)
        noise = torch.randn(self.batch, *self.shape, generator=generator, dtype=first.dtype, device=first.device)
        self.samples += self.batch
        return FlowRows(self.likelihood.draw(self.velocities[role], noise, condition, generator), group, condition)

    def score(self, role: str, rows: FlowRows) -> Scores:
        said = self.likelihood.say(self.velocities[role], rows.drawn, rows.condition)
        with torch.no_grad():
            reference = self.likelihood.say(self.reference, rows.drawn, rows.condition)
        # no law of one action, so no entropy that could move: tau weighs the divergence
        kl = self.likelihood.kl(said, reference, rows.drawn)
        return Scores(said.logp, kl, torch.zeros_like(said.logp), reference.logp)

    def rewards(self, rows: FlowRows) -> Tensor:
        return self.reward(rows.point, rows.group)

    def parameters(self, role: str) -> Mapping[str, nn.Parameter]:
        if role == REWARD:
            return self.x
        return {name: p for name, p in self.velocities[role].named_parameters() if p.requires_grad}

    # -- what losses without a likelihood read ------------------------------------------------------------------------

    def tensors(self, role: str, rows: FlowRows, names: Collection[str]) -> dict[str, Tensor]:
        said = self.likelihood.say(self.velocities[role], rows.drawn, rows.condition)
        found = {"matching_error": said.error}
        if "velocity_gap" in names:
            with torch.no_grad():
                reference = self.likelihood.say(self.reference, rows.drawn, rows.condition)
            found["velocity_gap"] = ((said.velocity - reference.velocity) ** 2).flatten(2).mean(2)
        return {name: found[name] for name in names}

    def fields(self, role: str, rows: FlowRows, needs: Collection[str]) -> dict[str, Any]:
        wanted = set(needs) | {"turn", *KEPT}
        found: dict[str, Any] = dict(zip(KEPT, rows.drawn, strict=True))
        # one action a turn: rules that compare states compare times
        found["turn"] = torch.arange(rows.mask.shape[1], device=rows.group.device).expand(rows.mask.shape)
        if self.likelihood.matches and wanted & {"matching_error", "matching_error_old"}:
            error = self.tensors(role, rows, ["matching_error"])["matching_error"]
            found |= {"matching_error": error, "matching_error_old": error, "matching_time": rows.drawn.time}
        if "velocity_gap" in wanted:
            found |= self.tensors(role, rows, ["velocity_gap"])
        return {name: value for name, value in found.items() if name in wanted}

    @property
    def given(self) -> tuple[str, ...]:
        """Fields of a `Batch` that it provides."""
        matching = ("matching_error", "matching_error_old", "matching_time") if self.likelihood.matches else ()
        return ("velocity_gap", "turn", "baseline", *matching)

    def again(self, batch: Any) -> FlowRows:
        group = batch.group
        return FlowRows(Actions(*(batch.get(name) for name in KEPT)), group, _taken(self.conditions, group))

    def greedy(self, groups: Sequence[int]) -> Tensor:
        """Of the sample that the middle of the noise flows to."""
        first = next(self.velocities["policy"].parameters())
        group = torch.tensor(list(groups), device=first.device)
        noise = torch.zeros(len(group), *self.shape, dtype=first.dtype, device=first.device)
        with torch.no_grad():
            point = euler(self.velocities["policy"], noise, _taken(self.conditions, group), self.likelihood.actions)
            return self.reward(point, group)

    # -- a reference that follows -------------------------------------------------------------------------------------

    @torch.no_grad()
    def moved(self) -> None:
        if self.reference_decay < 1:
            for slow, fast in zip(*(v.parameters() for v in (self.reference, self.velocities["policy"])), strict=True):
                slow.lerp_(fast, 1 - self.reference_decay)

    def whole_weights(self) -> Iterator[tuple[str, Tensor]]:
        """See `Engine`; with the reference, where it follows."""
        yield from super().whole_weights()
        yield from self._followed().items()

    @torch.no_grad()
    def load(self, state: Mapping[str, Tensor]) -> None:
        """See `Engine`."""
        own = self._followed()
        super().load({key: value for key, value in state.items() if key not in own})
        for key, slow in own.items():
            if key not in state:
                raise InvalidConfig(
                    message("checkpoint", "no reference", f"with reference_decay={self.reference_decay:g} it is kept",
                            "Give the options that the run began with")
                )  # fmt: skip
            slow.copy_(state[key])

    def _followed(self) -> dict[str, Tensor]:
        if self.reference_decay == 1:
            return {}
        return {f"reference/{name}": p for name, p in self.reference.named_parameters()}

    # -- looking ------------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, count: int, steps: int = 20, seed: int = 0, role: str = "policy", reference: bool = False):
        """Samples along the flow itself, as it would be used, and their prompts: points [count, *D], group [count]."""
        first = next(self.velocities[role].parameters())
        group = (torch.arange(count) % self.prompts).to(first.device)
        generator = torch.Generator(first.device).manual_seed(7_919 + seed)
        noise = torch.randn(count, *self.shape, generator=generator, dtype=first.dtype, device=first.device)
        velocity = self.reference if reference else self.velocities[role]
        return euler(velocity, noise, _taken(self.conditions, group), steps), group

    @torch.no_grad()
    def _check_velocity(self, velocity: nn.Module) -> None:
        first = next(velocity.parameters())
        x = torch.zeros(2, *self.shape, dtype=first.dtype, device=first.device)
        at = torch.zeros(2, dtype=torch.long, device=first.device)
        v = velocity(x, torch.full((2,), 0.5, dtype=first.dtype, device=first.device), _taken(self.conditions, at))
        got = f"shape {tuple(v.shape)}" if v.shape != x.shape else "numbers that are not finite"
        if v.shape != x.shape or not bool(v.isfinite().all()):
            raise InvalidProblem(
                message("FlowEngine.velocity", got, f"two points give finite velocities of shape {tuple(x.shape)}",
                        "Look at `shape`, `conditions` and the network")
            )  # fmt: skip


def _check_sizes(velocity: Any, batch: int, group: int, prompts: int) -> None:
    if not isinstance(velocity, nn.Module) or not any(p.requires_grad for p in velocity.parameters()):
        raise InvalidConfig(
            message("FlowEngine.velocity", f"{type(velocity).__name__} without trained parameters",
                    "it is an nn.Module with parameters that require a gradient", "Wrap the function in a module")
        )  # fmt: skip
    if not (1 <= group <= batch and batch % group == 0 and prompts >= 1):
        raise InvalidConfig(
            message("FlowEngine", f"batch={batch}, group={group}, prompts={prompts}",
                    "a batch is a whole number of groups, and there is at least one prompt", "Use batch=64, group=8")
        )  # fmt: skip


def _taken(condition: Any, index: Any) -> Any:
    if condition is None:
        return None
    return tuple(c[index] for c in condition) if isinstance(condition, tuple) else condition[index]
