r"""The learner: a recipe of `policy_gradient` as the lower level, and what must agree between the two followers.

One iteration (rollout -> select -> reward -> credit -> weigh -> loss + regular -> step):

    batch    a follower's rows as a `Batch`: reward terms r_x, and as `cost` the price tau KL
    paid     the reward slot, on r_x alone; theta^L then gets the bonus w u as one more term
    decide   select, credit, weigh, for theta; `follow` gives theta^L the same rows and weights, and its own credit
    loss     as a function of [N, T] tensors; its gradient in them goes back through the model in parts

What a judged pair earns is paid after credit where credit compares rows with one another: a baseline that knows one of
the two rows takes a share of the bonus away (see `objectives`).

tau belongs to the problem: whatever the recipe, the regulariser is paid and differentiated alike.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.engine import Engine, Scores
from bilevel_rl.levels.estimators import Ratios, off_policy, value_loss
from bilevel_rl.levels.followers import Drawn, Facing, Lower, Prepared, Scored
from bilevel_rl.levels.guards import check_finite
from bilevel_rl.levels.methods.base import Incentive
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.levels.requirements import DEMONSTRATION, SCORED, beyond_scores, needs
from bilevel_rl.levels.settings import Settings
from bilevel_rl.policy_gradient.aggregate import sum_of_tokens
from bilevel_rl.policy_gradient.batch import PROVIDERS, Batch, paid_at_end
from bilevel_rl.policy_gradient.component import Effect
from bilevel_rl.policy_gradient.credit.truncated import finished_only
from bilevel_rl.policy_gradient.recipe import Memory, Recipe
from bilevel_rl.policy_gradient.rollout.ask import RolloutAsk, RolloutPlan
from bilevel_rl.policy_gradient.segments import label, segment_mean
from bilevel_rl.policy_gradient.select.prompts import PassRates
from bilevel_rl.policy_gradient.select.replay import Replay, ReplayBuffer

log = logging.getLogger(__name__)
# of one iteration alone: a replay buffer does not keep them
HEAVY = ("logits", "hidden", "sensitivity", "cost", "importance")


class Learner:
    """A recipe at work.

    Args:
        recipe: its components; replay buffers are copied, so that runs do not share them.
        settings: of the run.
        lower: scores rows.
        starts: number of different groups, where rates of success are remembered.
        given: fields that the engine provides itself.

    Attributes:
        memory: what stateful components remember.
    """

    def __init__(
        self, recipe: Recipe, settings: Settings, lower: Lower, starts: int = 1, given: Collection[str] = ()
    ) -> None:
        self.recipe, self.settings, self.lower = _own(recipe), settings, lower
        self.engine: Engine = lower.engine
        self.processes: Processes = lower.processes
        self.share: Share = lower.share
        self.needs = needs(self.recipe)
        self.rates = PassRates(starts, memory=64)  # ours: about the last 64 rows of a start count
        self.memory: Memory = self.recipe.init()
        if "prompt_value" in self.needs and "prompt_value" not in given:
            self.memory["pass_rates"] = self.rates.init()
        self.starts = starts
        if self.recipe.rollout:
            self._will_plan()
        self.rewarded: Batch | None = None
        self.finished_only = any(c.card.name == "truncated_gae" for c in self.recipe.components)
        self.weighs_importance = any(getattr(c, "reads_importance", False) for c in self.recipe.components)
        credit = getattr(self.recipe.credit, "card", None)
        # a credit rule that keeps the objective is linear in the rewards: what is added after it is added before it
        self.pays_pairs_after = (
            credit is not None and credit.effect is Effect.KEEPS and "group" in credit.needs
        )

    @property
    def buffers(self) -> list[ReplayBuffer]:
        """Replay buffers of the recipe."""
        return [c.buffer for c in self.recipe.components if isinstance(c, Replay)]

    # -- what is generated --------------------------------------------------------------------------------------

    def _will_plan(self) -> None:
        """Let the engine ask what to generate, or say that it can't."""
        name = getattr(self.recipe.rollout[0], "card", None)
        if not self.engine.plans:
            raise InvalidConfig(
                message(f"rollout '{name.name if name else '?'}'", f"{type(self.engine).__name__}, which draws by itself",
                        "the rollout slot needs an engine that asks what to generate", "Leave rollout out")
            )  # fmt: skip
        slot: list[Any] = list(self.recipe.rollout)
        writers = [c for c in slot if hasattr(c, "write")]
        late = [c for c in writers[1:] if getattr(c, "begins", False)]
        if late or (writers and any(c.card.name == "refill" for c in slot)):
            odd = late[0].card.name if late else "refill"
            raise InvalidConfig(
                message(f"rollout '{odd}'", f"{writers[0].card.name} beside it", "one component of the slot begins rows",
                        "Leave one of them out")
            )  # fmt: skip
        self.engine.planner = self.plan

    def plan(self, candidates: Callable[[int], Tensor], k: int) -> RolloutPlan:
        """What iteration k generates: the same for both followers, a function of what is remembered before it."""
        known = self.memory.get("pass_rates")
        settings = self.settings
        return self.recipe.plan(
            RolloutAsk(
                candidates, settings.batch // settings.group, settings.group, known and known["value"], k, self.memory,
                self.engine.start_features,
            )
        )

    # -- what is learned from ---------------------------------------------------------------------------------

    def prepare(
        self, followers: Sequence[Scored], incentive: Incentive | None, ratios: Ratios | None, facing: Facing, k: int
    ) -> list[Prepared]:  # fmt: skip
        """The prepared batch of each follower, theta first.

        Args:
            followers: scored.
            incentive: what theta^L ascends beside J.
            ratios: importance of theta's rows for theta^L; None when it has its own.
            facing: at which x a role is rewarded: credit may read x.
            k: iteration.
        """
        theta = self.lead(followers[0], facing, k)
        return [theta, *(self.follow(f, theta, incentive, ratios, facing, k) for f in followers[1:])]

    def lead(self, f: Scored, facing: Facing, k: int) -> Prepared:
        """theta's prepared batch, in which the decisions are taken; what f is has no part in it."""
        with facing(f.role):
            batch = self._charge(self.recipe.paid(self._batch(f, k)), f)
            self.rewarded = batch
            return self._ready(f, batch, self.recipe.decide(batch), self._off(f))

    def follow(
        self, f: Scored, theta: Prepared, incentive: Incentive | None, ratios: Ratios | None, facing: Facing, k: int
    ) -> Prepared:  # fmt: skip
        """theta^L's prepared batch, with theta's rows and weights."""
        with facing(f.role):
            batch = self._charge(self._tempted(self.recipe.paid(self._batch(f, k)), incentive), f)
            if ratios is not None and self.weighs_importance and self.settings.ratio == "sequence":
                batch = batch.replace(importance=_ones_after(ratios.sequence, len(batch)))
            ready = self._paid_after(self.recipe.follow(batch, theta.batch), batch, incentive)
            weight = self._off(theta.scored, None if ratios is None else ratios.weight)
            return self._ready(f, batch, ready, weight)

    def _off(self, wrote: Scored, weight: Tensor | None = None) -> Tensor | None:
        """[N, T] importance of the rows, times that of the policy over who wrote them, where that is another."""
        if not self.engine.foreign:
            return weight
        own = off_policy(wrote.logp, wrote.rows.logp, wrote.rows.mask, self.settings.off_policy_clip)
        return own if weight is None else weight * own

    def _tempted(self, batch: Batch, incentive: Incentive | None) -> Batch:
        """theta^L is paid w u at the last action; 0 for demonstrations."""
        if incentive is None:
            return batch
        bonus = incentive.bonus
        if incentive.pairs is not None and not self.pays_pairs_after:
            bonus = bonus + incentive.pairs.centred
        more = torch.nn.functional.pad(bonus, (0, len(batch) - len(bonus)))
        paid = paid_at_end(batch.mask, more[:, None].to(batch.reward))
        return batch.replace(reward=torch.cat([batch.reward, paid], -1))

    def _paid_after(self, ready: Batch, batch: Batch, incentive: Incentive | None) -> Batch:
        """Advantages with what pairs earn, where credit would have compared the two."""
        if incentive is None or incentive.pairs is None or not self.pays_pairs_after:
            return ready
        earned = incentive.pairs.centred
        known = {t: i for i, t in enumerate(batch.trajectory.tolist()[: len(earned)])}
        rows = [known.get(t, -1) for t in ready.trajectory.tolist()]
        more = torch.stack([earned[i] if i >= 0 else earned.new_zeros(()) for i in rows])
        assert ready.advantage is not None
        return ready.replace(advantage=ready.advantage + ready.spread(more.to(ready.advantage)))

    def _charge(self, batch: Batch, f: Scored) -> Batch:
        """The batch with minus the regulariser's price at each action as the extra `cost`; none where it is nothing."""
        if self.settings.kl_estimator == "k3" or not bool(f.cost.any()):
            return batch
        # an exact cost is that of a state: it is the doing of the action before
        exact = self.settings.kl_estimator == "exact"
        paid = torch.nn.functional.pad(f.cost[:, 1:], (0, 1)) if exact else f.cost
        cost = -paid * f.rows.mask
        longer = batch.mask.shape[1] - cost.shape[1]  # demonstrations may be
        cost = torch.nn.functional.pad(cost, (0, longer, 0, len(batch) - len(cost)))
        return batch.replace(cost=cost[..., None])

    def _ready(self, f: Scored, batch: Batch, ready: Batch, weight: Tensor | None) -> Prepared:
        rho = None
        if weight is not None:
            rho = _along(weight, batch, ready, f.rows.size)
            ready = ready.replace(weight=rho if ready.weight is None else ready.weight * rho)
        same = ready.trajectory.tolist() == batch.trajectory.tolist() and len(batch) == f.rows.size
        rows = None if same else (self.engine.again(ready) if len(ready) else f.rows)
        targets = known = None
        if f.critic:
            targets = self.recipe.value_targets(ready)
            known = finished_only(ready) if self.finished_only else ready.mask
        return Prepared(f, ready, rows, rho, targets, known)

    def finish(self, theta: Prepared) -> None:
        """Let stateful components see the batch, once an iteration, after the last step on it."""
        assert self.rewarded is not None
        self.memory = self.recipe.update(self.memory, theta.batch) | {
            name: state for name, state in self.memory.items() if name == "pass_rates"
        }
        own = ~self.rewarded.get(DEMONSTRATION) if self.rewarded.has(DEMONSTRATION) else None
        fresh = self.rewarded if own is None else self.rewarded.rows(own)
        if fresh.has("hinted"):
            fresh = fresh.rows(~fresh.get("hinted").bool())  # rates are those of rows without a hint
        if "pass_rates" in self.memory:
            self.memory["pass_rates"] = self.rates.update(self.memory["pass_rates"], fresh)
        light = {k: v for k, v in fresh.extras.items() if k not in HEAVY}
        for buffer in self.buffers:
            buffer.add(fresh.replace(extras=light))

    # -- gradients ----------------------------------------------------------------------------------------------

    def backward(self, f: Prepared, tau: float, graph: bool, first: bool, k: int, half: int | None = None) -> None:
        """Gradients of one follower and its critic on its prepared batch.

        The loss is a function of [n, T] tensors of the whole batch, whatever it compares. Its gradient in them goes
        back through the model by parts and processes, which therefore changes nothing.

        Args:
            f: prepared.
            tau: weight of the problem's regulariser.
            graph: scoring has kept its graph.
            first: no step has been taken since the rows were scored.
            k: iteration.
            half: 0 or 1, the gradient of that half of the rows, doubled; None: of all.
        """
        if not len(f.batch):
            return
        parts, kept = self._parts(f), None
        if graph and f.rows is None:
            kept = f.scored.own
        elif not first and len(parts) == 1 and self.processes.count == 1:
            kept = self.engine.score(f.scored.role, parts[0][1])  # one pass where one part is all
        gradients = self._token_gradients(f, kept, tau, first, k)
        if half is not None:
            keep = (torch.arange(len(f.batch), device=f.batch.mask.device) < len(f.batch) // 2) == (half == 0)
            gradients = {
                n: g * (2.0 * keep).reshape(-1, *[1] * (g.ndim - 1)).to(g) for n, g in gradients.items()
            }
        retain = kept is not None and half == 0
        for here, part in parts:
            self._through_policy(f.scored.role, part, kept, {n: g[here] for n, g in gradients.items()}, retain)
            if f.scored.critic:
                self._through_critic(f, part, here, graph and f.rows is None, retain, k)

    def _token_gradients(
        self, f: Prepared, kept: Scores | None, tau: float, first: bool, k: int
    ) -> dict[str, Tensor]:
        """The loss's gradient in the [n, T] statistics of the whole batch, by name."""
        batch, role = f.batch, f.scored.role
        rows = f.scored.rows if f.rows is None else f.rows
        names = list(SCORED)
        old_rows = f.rows is not None and batch.has("replayed") and bool(batch.get("replayed").any())
        if first and not old_rows:
            whole = {name: batch.get(name) for name in names}
        else:
            whole = dict(zip(names, kept or self._again(role, rows), strict=False))
        more = beyond_scores(self.recipe)
        if more:
            names += more
            whole |= self._tensors(role, rows, more)
        leaves = {name: value.detach().requires_grad_() for name, value in whole.items()}
        loss, _ = self.recipe.objective(batch.replace(**leaves))
        price = self.lower.differentiable(leaves["logp"], leaves["kl"], leaves["entropy"], batch.get("ref"))
        if price is not None:
            loss = loss + weighs(self.recipe.loss)(tau * price * _visited(f), batch)
        check_finite(f"loss of {role}", loss, k)
        found = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        return {n: g for n, g in zip(names, found, strict=True) if g is not None}

    def _through_policy(
        self, role: str, part: Any, kept: Scores | None, gradients: Mapping[str, Tensor], retain: bool
    ) -> None:
        with self.engine.acting(role):
            given: dict[str, Tensor] = {}
            if set(SCORED) & gradients.keys():  # a loss without a likelihood reads none of them
                given |= (kept if kept is not None else self.engine.score(role, part))._asdict()
            more = [n for n in gradients if n not in SCORED]
            if more:
                given |= self.engine.tensors(role, part, more)
            torch.stack([(given[n] * g).sum() for n, g in gradients.items()]).sum().backward(retain_graph=retain)

    def _through_critic(self, f: Prepared, part: Any, here: slice, graph: bool, retain: bool, k: int) -> None:
        assert f.targets is not None
        assert f.known is not None
        with self.engine.acting(f.scored.critic):
            kept = f.scored.own_values if graph else None
            values = kept if kept is not None else self.engine.values(f.scored.critic, part)
            ones = torch.ones_like(values) if f.rho is None else f.rho[here]
            loss = value_loss(
                values, f.targets[here], ones, f.known[here].to(values), float(f.known.sum().clamp(min=1))
            )
            check_finite(f"loss of {f.scored.critic}", loss, k)
            loss.backward(retain_graph=retain)

    def _parts(self, f: Prepared) -> list[tuple[slice, Any]]:
        """This process's rows of a prepared batch: where they are in it, and the rows."""
        if f.rows is None:
            return [
                (self.share.here(rows), self.share.part(f.scored.mine, rows)) for rows in self.share.parts()
            ]
        return [(rows, f.rows.rows(rows)) for rows in self._slices(f.rows.size)]

    def _slices(self, size: int) -> list[slice]:
        mine = self.processes.part(size)
        step = self.settings.micro_batch or size
        return [slice(i, min(i + step, mine.stop)) for i in range(mine.start, mine.stop, step)]

    @torch.no_grad()
    def _tensors(self, role: str, rows: Any, names: Sequence[str]) -> dict[str, Tensor]:
        """What losses differentiate in beyond scores, of all rows, each process computing its own."""
        parts = [(here, self.engine.tensors(role, rows.rows(here), names)) for here in self._slices(rows.size)]
        out = {n: torch.zeros(rows.size, *parts[0][1][n].shape[1:]).to(parts[0][1][n]) for n in names}
        for here, found in parts:
            for n in names:
                out[n][here] = found[n]
        self.processes.add(list(out.values()))
        return out

    @torch.no_grad()
    def _again(self, role: str, rows: Any) -> list[Tensor]:
        """logp, KL and entropy of all rows under the policy as it is now, each process computing its own."""
        out = [torch.zeros_like(rows.mask) for _ in range(3)]
        for here in self._slices(rows.size):
            for total, value in zip(out, self.engine.score(role, rows.rows(here)), strict=False):
                total[here] = value
        self.processes.add(out)
        return out

    # -- what a checkpoint holds ------------------------------------------------------------------------------

    def tensors(self) -> dict[str, Tensor]:
        """Everything that the next iteration depends on, by name."""
        found = {f"memory/{name}/{key}": v for name, state in self.memory.items() for key, v in state.items()}
        for i, buffer in enumerate(self.buffers):
            found |= {f"replay{i}/{key}": value for key, value in buffer.tensors().items()}
        return found

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Put back what `tensors` gave."""
        memory: Memory = {}
        for path, value in tensors.items():
            if path.startswith("memory/"):
                _, name, key = path.split("/", 2)
                memory.setdefault(name, {})[key] = value
        self.memory = {name: memory.get(name, state) for name, state in self.memory.items()}
        for i, buffer in enumerate(self.buffers):
            start = f"replay{i}/"
            buffer.load({key.removeprefix(start): v for key, v in tensors.items() if key.startswith(start)})

    # -- batches ----------------------------------------------------------------------------------------------

    def _batch(self, f: Scored, k: int) -> Batch:
        """A follower's rows, and demonstrations of their starts, with all that components read."""
        batch = self._record(f, 0, k)
        if DEMONSTRATION in self.needs:
            batch = self._with_demonstrations(batch, f, k)
        extras: dict[str, Tensor] = {}
        if "winner" in self.needs and not batch.has("winner"):
            index, count = label(batch.group)
            extras["winner"] = batch.score > segment_mean(batch.score, index, count)[index]
        if "prompt_value" in self.needs and not batch.has("prompt_value"):
            extras["prompt_value"] = self.memory["pass_rates"]["value"].to(batch.reward)[batch.group]
        if "baseline" in self.needs and not batch.has("baseline"):
            groups = list(dict.fromkeys(batch.group.tolist()))
            best = self.engine.greedy(groups).to(batch.reward)
            where = {g: i for i, g in enumerate(groups)}
            extras["baseline"] = best[[where[g] for g in batch.group.tolist()]]
        progress = k / self.settings.steps
        return batch.replace(**extras, memory=self.memory, progress=progress, iteration=k)

    def _with_demonstrations(self, batch: Batch, f: Scored, k: int) -> Batch:
        def marked(rows: Batch, shown: bool) -> Batch:
            mark = torch.full((len(rows),), shown, dtype=torch.bool, device=batch.mask.device)
            return rows.replace(demonstration=mark)

        rows = self.engine.shown(list(dict.fromkeys(batch.group.tolist())))
        batch = marked(batch, False)
        if rows is None:
            return batch
        shown = self.lower.look(Drawn(f.role, f.critic, rows, rows))
        return Batch.cat([batch, marked(self._record(shown, len(batch), k), True)])

    def _record(self, f: Scored, first: int, k: int) -> Batch:
        rows = f.rows
        mask = rows.mask.bool()
        position = torch.arange(mask.shape[1], device=mask.device)
        end = position == rows.lengths[:, None] - 1
        terms = f.terms if f.terms is not None else f.reward[:, None]
        with torch.no_grad():
            found = self.engine.fields(f.role, rows, self.needs)
        if f.values is not None:
            found.setdefault("value", f.values)
        found.setdefault("turn", torch.zeros_like(mask, dtype=torch.long))
        group = found.pop("group", rows.group)
        known = {field.name for field in dataclasses.fields(Batch)} | set(PROVIDERS)
        extras = {name: found.pop(name) for name in sorted(set(found) - known)}  # of components written elsewhere
        return Batch.make(
            mask, torch.where(end[..., None], terms[:, None, :], 0), group,
            torch.arange(rows.size) + first + k * 1_000_000,
            done=rows.ended, truncated=~rows.ended, logp=f.logp, old=f.logp, ref=f.reference, entropy=f.entropy,
            kl=f.kl, iteration=k, extras=extras, **found,
        )  # fmt: skip


def _own(recipe: Recipe) -> Recipe:
    """The recipe with replay buffers of its own."""
    select = tuple(
        dataclasses.replace(c, buffer=copy.deepcopy(c.buffer)) if isinstance(c, Replay) else c
        for c in recipe.select
    )
    return dataclasses.replace(recipe, select=select)


def weighs(loss: Any) -> Callable[[Tensor, Batch], Tensor]:
    """How a loss averages over actions; the regulariser is averaged alike."""
    found: Callable[[Tensor, Batch], Tensor] = getattr(loss, "aggregate", sum_of_tokens)
    return found


def _visited(f: Prepared) -> Tensor:
    """[n, T] weight of the regulariser's own gradient: importance, 0 where another policy chose the history."""
    batch = f.batch
    weight = torch.ones_like(batch.get("old")) if f.rho is None else f.rho
    for name in ("replayed", DEMONSTRATION):
        if batch.has(name):
            weight = torch.where(batch.get(name).bool()[:, None], 0, weight)
    return weight


def _ones_after(values: Tensor, size: int) -> Tensor:
    """[size] the values, and ones for the rows that were shown."""
    return torch.nn.functional.pad(values, (0, size - len(values)), value=1.0)


def _along(weight: Tensor, batch: Batch, ready: Batch, rows: int) -> Tensor:
    """[n, T] importance weights of the rows of `ready`; 1 for those that no follower wrote in this iteration."""
    known = {t: i for i, t in enumerate(batch.trajectory.tolist()[:rows])}
    out = torch.ones_like(ready.get("old"))
    for j, t in enumerate(ready.trajectory.tolist()):
        if t in known:
            own = weight[known[t]]
            out[j, : len(own)] = own
    return out
