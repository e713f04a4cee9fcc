r"""Recipes as the lower level: from scored followers to a prepared batch, and what must agree between the two.

One iteration with a recipe (rollout -> select -> reward -> credit -> weigh -> loss + regular -> step):

    batch    theta's completions as a `Batch`: reward terms r_x, and as `cost` the price tau KL
    paid     the reward slot, on r_x alone; theta^L then gets the bonus w u as one more term
    decide   select, credit, weigh, for theta; `follow` gives theta^L the same rows and weights, and its own credit
    loss     as a function of [N, T] tensors; its gradient in them goes back through the model in parts

tau belongs to the problem: whatever the recipe, the regulariser is paid and differentiated as without one.
"""

from __future__ import annotations

import copy
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm import setup
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.followers import Follower, Lower
from bilevel_rl.llm.sampling.rollout import Rollout, assemble, from_pairs, pad_prompts
from bilevel_rl.policy_gradient.batch import PROVIDERS, Batch, paid_at_end
from bilevel_rl.policy_gradient.component import Effect, Slot
from bilevel_rl.policy_gradient.credit.optimal_baseline import logit_score_norm
from bilevel_rl.policy_gradient.credit.truncated import finished_only
from bilevel_rl.policy_gradient.recipe import Memory, Recipe
from bilevel_rl.policy_gradient.recipes import compose
from bilevel_rl.policy_gradient.reward.novelty import sensitivity
from bilevel_rl.policy_gradient.segments import label, segment_mean
from bilevel_rl.policy_gradient.select.prompts import PassRates
from bilevel_rl.policy_gradient.select.replay import Replay, ReplayBuffer
from bilevel_rl.policy_gradient.setting import Setting

log = logging.getLogger(__name__)
Field = Callable[[Rollout], Tensor]
# fields that the trainer can provide itself; more come from `fields`
OWN = {
    "reward", "group", "logp", "old", "ref", "entropy", "kl", "value", "answer", "turn", "completions", "score_norm",
    "target", "logits", "winner", "prompt_value", "baseline",
}  # fmt: skip
DEMONSTRATION = "demonstration"  # a prompt's column, and the field that marks the rows made of it
ANSWERS = (
    "bilevel",
    "nested",
    "finite_difference",
)  # methods in which x learns from how the policy answers it


class RecipeLevel:
    """A recipe at work in a trainer.

    Args:
        recipe: its components; replay buffers are copied, so that runs do not share them.
        config: of the run.
        prompts: all prompts; a response's `group` is its prompt's number among them.
        fields: what the task knows of a response, by field name: functions of a rollout.
        lower: scores rollouts.
        tokenizer, stop_ids, pad_id: for demonstrations.
        greedy: prompts -> [Q] rewards of the greedy completion of each.

    Attributes:
        memory: what stateful components remember.
    """

    def __init__(
        self, recipe: Recipe, config: Config, prompts: Sequence[Prompt], fields: Mapping[str, Field], lower: Lower,
        tokenizer: Any, stop_ids: Sequence[int], pad_id: int, greedy: Callable[[Sequence[Prompt]], Tensor],
    ) -> None:  # fmt: skip
        self.recipe, self.config, self.fields, self.lower = _own(recipe), config, fields, lower
        self.greedy, self.pad_id, self.tokenizer = greedy, pad_id, tokenizer
        self.needs = needs(self.recipe)
        self.number = {p.ids: i for i, p in enumerate(prompts)}
        self.prompts = prompts
        self.rates = PassRates(len(prompts), memory=64)  # ours: about the last 64 responses of a prompt count
        self.memory: Memory = self.recipe.init()
        if "prompt_value" in self.needs and "prompt_value" not in fields:
            self.memory["pass_rates"] = self.rates.init()
        self.demonstrations = (
            _demonstrations(prompts, tokenizer, stop_ids, config.max_new_tokens)
            if DEMONSTRATION in self.needs
            else {}
        )
        self.rewarded: Batch | None = None

    @property
    def buffers(self) -> list[ReplayBuffer]:
        """Replay buffers of the recipe."""
        return [c.buffer for c in self.recipe.components if isinstance(c, Replay)]

    # -- one iteration ----------------------------------------------------------------------------------------

    def prepare(
        self,
        followers: Sequence[Follower],
        bonus: Tensor | None,
        weight: Tensor | None,
        progress: float,
        k: int,
    ) -> None:
        """Fill `ready` of each follower.

        Args:
            followers: scored.
            bonus: [N] w u, paid to theta^L.
            weight: [N, T] importance of theta's completions for theta^L; None when it has its own.
            progress: share of the run done.
            k: iteration.
        """
        theta = followers[0]
        for f in followers:
            with self.lower.differences.shifted(f.role, k):  # credit may read x: see `GatedRewards`
                self._prepare(f, theta, bonus, weight, progress, k)

    def _prepare(
        self,
        f: Follower,
        theta: Follower,
        bonus: Tensor | None,
        weight: Tensor | None,
        progress: float,
        k: int,
    ) -> None:
        batch = self.recipe.paid(self._batch(f, progress, k))
        rows = len(f.rollout.lengths)
        if bonus is not None and f is not theta:
            batch = batch.replace(reward=torch.cat([batch.reward, self._bonus(batch, bonus)], -1))
        cost = self._cost(f)
        if cost is not None:
            longer = batch.mask.shape[1] - cost.shape[1]  # demonstrations may be
            cost = torch.nn.functional.pad(cost, (0, longer, 0, len(batch) - rows))
            batch = batch.replace(cost=cost[..., None])
        if f is theta:
            self.rewarded = batch
            f.ready = self.recipe.decide(batch)
        else:
            f.ready = self.recipe.follow(batch, theta.ready)
        f.rho = None
        if weight is not None and f is not theta:
            f.rho = _along(weight, batch, f.ready, rows)
            own = f.ready.weight
            f.ready = f.ready.replace(weight=f.rho if own is None else own * f.rho)
        fresh = f.ready.trajectory.tolist() == batch.trajectory.tolist() and len(batch) == rows
        f.rows = None if fresh else self._rollout(f.ready)
        f.targets = None
        if f.critic:
            f.targets = self.recipe.value_targets(f.ready)
            finished = any(c.card.name == "truncated_gae" for c in self.recipe.components)
            f.known = finished_only(f.ready) if finished else f.ready.mask

    def finish(self, theta: Follower) -> None:
        """Let stateful components see the batch, once an iteration, after the last step on it."""
        self.memory = self.recipe.update(self.memory, theta.ready) | {
            name: state for name, state in self.memory.items() if name == "pass_rates"
        }
        own = ~self.rewarded.get(DEMONSTRATION) if self.rewarded.has(DEMONSTRATION) else None
        fresh = self.rewarded if own is None else self.rewarded.rows(own)
        if "pass_rates" in self.memory:
            self.memory["pass_rates"] = self.rates.update(self.memory["pass_rates"], fresh)
        light = {k: v for k, v in fresh.extras.items() if k not in ("logits", "sensitivity", "cost")}
        for buffer in self.buffers:
            buffer.add(fresh.replace(extras=light))

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

    def _batch(self, f: Follower, progress: float, k: int) -> Batch:
        """A follower's completions, and the demonstrations of their prompts, with all that components read."""
        batch = self._record(f, f.rollout, 0, k)
        if self.demonstrations:
            batch = batch.replace(
                demonstration=torch.zeros(len(batch), dtype=torch.bool, device=batch.mask.device)
            )
            rows = [
                (self.prompts[g], self.demonstrations[g])
                for g in dict.fromkeys(batch.group.tolist())
                if g in self.demonstrations
            ]
            if rows:
                shown = self._shown(f, rows)
                more = self._record(shown, shown.rollout, len(batch), k)
                more = more.replace(
                    demonstration=torch.ones(len(more), dtype=torch.bool, device=batch.mask.device)
                )
                batch = Batch.cat([batch, more])
        extras: dict[str, Tensor] = {}
        if "winner" in self.needs and not batch.has("winner"):
            index, count = label(batch.group)
            extras["winner"] = batch.score > segment_mean(batch.score, index, count)[index]
        if "prompt_value" in self.needs and not batch.has("prompt_value"):
            extras["prompt_value"] = self.memory["pass_rates"]["value"].to(batch.reward)[batch.group]
        if "baseline" in self.needs and not batch.has("baseline"):
            groups = list(dict.fromkeys(batch.group.tolist()))
            best = self.greedy([self.prompts[g] for g in groups]).to(batch.reward)
            where = {g: i for i, g in enumerate(groups)}
            extras["baseline"] = best[[where[g] for g in batch.group.tolist()]]
        return batch.replace(**extras, memory=self.memory, progress=progress, iteration=k)

    def _record(self, f: Follower, rollout: Rollout, first: int, k: int) -> Batch:
        mask = rollout.mask.bool()
        position = torch.arange(mask.shape[1], device=mask.device)
        end = position == rollout.lengths[:, None] - 1
        terms = f.terms if f.terms is not None else f.reward[:, None]
        found: dict[str, Any] = {name: function(rollout) for name, function in self.fields.items()}
        found.setdefault("turn", torch.zeros_like(rollout.completions))
        if "answer" in self.needs and "answer" not in found:
            numbers: dict[str, int] = {}
            found["answer"] = [numbers.setdefault(str(text), len(numbers)) for text in rollout.texts]
        if {"logits", "score_norm", "sensitivity"} & self.needs:
            logits = self.lower.logits(f.role, rollout)
            if "score_norm" in self.needs:
                found.setdefault("score_norm", logit_score_norm(logits, rollout.completions))
            if "sensitivity" in self.needs and "sensitivity" not in found:
                head = self.lower.head(f.role)
                found["sensitivity"] = sensitivity(logits, rollout.completions, head, mask)
            if "logits" in self.needs:
                found.setdefault("logits", logits)
        if "target" in self.needs:
            found.setdefault("target", rollout.completions)
        if f.values is not None:
            found.setdefault("value", f.values)
        known = {field.name for field in dataclasses.fields(Batch)} | set(PROVIDERS)
        extras = {name: found.pop(name) for name in sorted(set(found) - known)}  # of components written elsewhere
        return Batch.make(
            mask, torch.where(end[..., None], terms[:, None, :], 0),
            [self.number[p.ids] for p in rollout.prompts], torch.arange(rollout.size) + first + k * 1_000_000,
            done=rollout.ended, truncated=~rollout.ended, logp=f.logp, old=f.logp, ref=f.reference, entropy=f.entropy,
            kl=f.kl, completions=rollout.completions, iteration=k, extras=extras, **found,
        )  # fmt: skip

    def _shown(self, f: Follower, rows: Sequence[tuple[Prompt, Sequence[int]]]) -> Follower:
        """Demonstrations scored as if the follower had written them; every process scores them all."""
        device = f.logp.device
        rollout = from_pairs(rows, self.pad_id, device, self.tokenizer)
        rollout = dataclasses.replace(rollout, ended=torch.ones_like(rollout.ended))
        shown = Follower(f.role, f.critic, rollout, rollout)
        with torch.no_grad():
            self.lower.look(shown)
        return shown

    @staticmethod
    def _bonus(batch: Batch, bonus: Tensor) -> Tensor:
        """[N, T, 1]: w u of each completion at its last token, 0 for demonstrations."""
        more = torch.nn.functional.pad(bonus, (0, len(batch) - len(bonus)))
        return paid_at_end(batch.mask, more[:, None].to(batch.reward))

    def _cost(self, f: Follower) -> Tensor | None:
        """[N, T] minus the regulariser's price at each token; None where it is nothing."""
        if self.config.kl_estimator == "k3" or not bool(f.cost.any()):
            return None
        # an exact cost is that of a state: it is the doing of the token before
        exact = self.config.kl_estimator == "exact"
        paid = torch.nn.functional.pad(f.cost[:, 1:], (0, 1)) if exact else f.cost
        return -paid * f.rollout.mask

    def _rollout(self, batch: Batch) -> Rollout:
        """The rows of a batch as a rollout, for policies that evaluate them again."""
        prompts = [self.prompts[g] for g in batch.group.tolist()]
        device = batch.mask.device
        if not prompts:
            return None
        ids, attention = pad_prompts(prompts, self.pad_id, device)
        completion = torch.where(batch.mask, batch.get("completions"), self.pad_id)
        lengths = batch.length.to(device)
        return assemble(prompts, ids, attention, completion, lengths, batch.done, torch.zeros_like(batch.old))


def _own(recipe: Recipe) -> Recipe:
    """The recipe with replay buffers of its own."""
    select = tuple(
        dataclasses.replace(c, buffer=copy.deepcopy(c.buffer)) if isinstance(c, Replay) else c
        for c in recipe.select
    )
    return dataclasses.replace(recipe, select=select)


def needs(recipe: Recipe) -> set[str]:
    """Fields that the components of a recipe read."""
    return {name for c in recipe.components for name in c.card.needs}


def with_recipe(config: Config, recipe: Recipe | str | None) -> tuple[Config, Recipe | None]:
    """The recipe of a run, and the configuration that says it, so that a resumed run is the same algorithm.

    Args:
        config: as given; its own recipe counts when there is no other.
        recipe: an object, a name or a composition.

    Returns:
        the configuration with the recipe's text, and the recipe.

    Raises:
        InvalidConfig: the run has a folder and the recipe can't be written to it.
    """
    if recipe is None or recipe == "":
        return config, compose(config.recipe) if config.recipe else None
    if isinstance(recipe, str):
        return dataclasses.replace(config, recipe=recipe), compose(recipe)
    if not config.out:
        return config, recipe
    return dataclasses.replace(config, recipe=recipe.describe()["composition"]), recipe


def setting(config: Config, fields: Mapping[str, Field], stop_ids: Sequence[int]) -> Setting:
    """What the components of a recipe may know of a run before it starts."""
    return Setting(
        epochs=config.epochs, group=config.group, max_new_tokens=config.max_new_tokens,
        turns="turn" in fields, truncates=None if stop_ids else True,
    )  # fmt: skip


def chooses(recipe: Recipe) -> bool:
    """Whether the rows that are learned from are others than those that were drawn."""
    return bool(recipe.select) or DEMONSTRATION in needs(recipe)


def check(
    recipe: Recipe, config: Config, fields: Mapping[str, Field], prompts: Sequence[Prompt], head: bool,
    stop_ids: Sequence[int] = (),
) -> None:  # fmt: skip
    """Say before training what can't work.

    Args:
        recipe: as given.
        config: of the run.
        fields: the task's own.
        prompts: which may have demonstrations.
        head: whether the policy has output embeddings to read.
        stop_ids: tokens that end a completion.

    Raises:
        InvalidConfig: naming the component and what to do.
    """
    for sentence in recipe.idle(setting(config, fields, stop_ids)):
        log.warning("%s", sentence)
    have = OWN | set(fields) | ({"sensitivity"} if head else set())
    if any(DEMONSTRATION in p.columns for p in prompts):
        have.add(DEMONSTRATION)
    recipe.check(have, config.group)
    loss, networks = getattr(recipe.loss, "card", None), 2 if config.uses_penalised else 1
    own_rollouts = networks == 2 and (config.estimator == "paired" or config.method == "finite_difference")

    def refuse(card: Any, got: str, why: str, do: str) -> InvalidConfig:
        return InvalidConfig(message(f"{card.slot} '{card.name}'", got, why, do))

    if loss is not None:
        reads = {"advantage", "reward", "winner"} & set(loss.needs)
        if not reads and config.method in ANSWERS:
            raise refuse(loss, f"method={config.method}", "it imitates and reads no reward, so the policy answers no x",
                         "Choose method=plain or partial_sgd, or another loss")  # fmt: skip
        if (
            "advantage" not in loss.needs
            and networks == 2
            and config.estimator == "shared"
            and config.method != "finite_difference"
        ):
            raise refuse(loss, "estimator=shared", "it does not read the advantage, which the importance ratios weigh",
                         "Choose estimator=tilted or paired")  # fmt: skip
        if config.epochs > 1 and reads and not {"old", "ref"} & set(loss.needs):
            raise refuse(loss, f"epochs={config.epochs}", "it is right for fresh samples only",
                         "Set epochs to 1, or choose loss=clipped")  # fmt: skip
    for select in recipe.select:
        card = getattr(select, "card", None)
        if card is not None and own_rollouts and not card.by_prompt:
            raise refuse(card, f"{config.method} with two rollouts", "it picks responses, and each policy has its own",
                         "Choose estimator=tilted or shared")  # fmt: skip
    card = getattr(recipe.step, "card", None)
    if card is not None and card.name == "harpg":
        raise refuse(card, "a language model", "the trainer takes no Hessian-vector products",
                     "Choose step=n_pg_igt, the variant without them")  # fmt: skip
    if card is not None and card.name == "adam" and networks == 2:
        raise refuse(card, "two policies", "their denominators must be one",
                     "Leave step out: optimizer=adam shares them")  # fmt: skip
    if config.method in ANSWERS:
        for c in recipe.components:
            if c.card.effect is Effect.CHANGES and c.card.slot not in (Slot.STEP, Slot.LOSS):
                log.info(
                    "%s '%s' changes the objective: x follows the hyper-gradient of J_tau, which this policy "
                    "does not maximise exactly", c.card.slot, c.card.name,
                )  # fmt: skip


def _along(weight: Tensor, batch: Batch, ready: Batch, rows: int) -> Tensor:
    """[n, T] importance weights of the rows of `ready`; 1 for those that no follower wrote in this iteration."""
    known = {t: i for i, t in enumerate(batch.trajectory.tolist()[:rows])}
    out = torch.ones_like(ready.old)
    for j, t in enumerate(ready.trajectory.tolist()):
        if t in known:
            own = weight[known[t]]
            out[j, : len(own)] = own
    return out


def _demonstrations(
    prompts: Sequence[Prompt], tokenizer: Any, stop_ids: Sequence[int], horizon: int
) -> dict[int, tuple[int, ...]]:
    """Completions shown for prompts with the column `demonstration`, by the prompt's number."""
    found = {}
    for i, prompt in enumerate(prompts):
        if prompt.columns.get(DEMONSTRATION):
            ids = setup.answer_ids(prompt.text, prompt.columns[DEMONSTRATION], tokenizer, stop_ids)
            found[i] = ids[:horizon]
    return found
