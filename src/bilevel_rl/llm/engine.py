"""Language models as an engine of `levels`: completions are rows, tokens are actions, prompts are groups.

`LanguageEngine` answers what `levels.engine` asks: it samples with named random numbers, evaluates policies with the
reference once for all, and knows what components want to know of text (answers, logits, demonstrations).
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from bilevel_rl.levels.engine import POLICIES, Engine, Scores
from bilevel_rl.levels.processes import Processes, Share
from bilevel_rl.llm import setup
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.prompts import Prompt, prompts_of
from bilevel_rl.llm.forward import precision
from bilevel_rl.llm.roles.backend import Roles
from bilevel_rl.llm.roles.policy import hidden_states, token_statistics
from bilevel_rl.llm.sampling.gathering import gather
from bilevel_rl.llm.sampling.rollout import Rollout, assemble, from_pairs, pad_prompts, replaced_rows, texts
from bilevel_rl.llm.sampling.sampler import Generator, Sampler, uniforms
from bilevel_rl.llm.writing import ANSWER, LanguageWriter
from bilevel_rl.policy_gradient.credit.optimal_baseline import logit_score_norm
from bilevel_rl.policy_gradient.reward.novelty import sensitivity
from bilevel_rl.policy_gradient.rollout.ask import RolloutPlan
from bilevel_rl.policy_gradient.rollout.refill import silent

ROLLOUT, ROLLOUT_L = 0x20, 0x21  # random streams, beside (seed, step)
Field = Callable[[Rollout], Tensor]
DEMONSTRATION = "demonstration"  # a prompt's column
# fields that this engine provides itself
FIELDS = {"value", "answer", "turn", "completions", "score_norm", "target", "logits", "baseline"}
OF_THE_BODY = {"start_features", "hidden"}  # of models whose hidden states can be read


class LanguageEngine(Engine):
    """The roles of a run on its prompts.

    Args:
        config: of the run.
        roles: the weights.
        processes, share: who computes which rows.
        prompts: all prompts; the group of a row is its prompt's number among them.
        generator: samples completions.
        tokenizer: or None.
        stop_ids, pad_id: of completions.
        extra: what the task knows of a completion, by field of `Batch`: functions of a rollout.
    """

    def __init__(
        self, config: Config, roles: Roles, processes: Processes, share: Share, prompts: Sequence[Prompt],
        generator: Generator, tokenizer: Any, stop_ids: Sequence[int], pad_id: int, extra: Mapping[str, Field],
    ) -> None:  # fmt: skip
        self.config, self.roles, self.processes, self.share = config, roles, processes, share
        self.prompts, self.generator, self.tokenizer = prompts, generator, tokenizer
        self.stop_ids, self.pad_id, self.extra = stop_ids, pad_id, extra
        self.names, self.referred, self.pieces = roles.names, roles.has_reference, roles.pieces
        self.number = {p.ids: i for i, p in enumerate(prompts)}
        self.described: dict[int, Tensor] = {}
        self.demonstrations = demonstrations(prompts, tokenizer, stop_ids, config.max_new_tokens)

    @property
    def provides(self) -> set[str]:
        """Fields of a `Batch` that components may read."""
        found = FIELDS | set(self.extra)
        if self.demonstrations:
            found |= {DEMONSTRATION, "demonstrations"}
        if any(p.columns.get(ANSWER) for p in self.prompts):
            found.add("gold_answers")
        with self.roles.model(POLICIES[0]) as model:
            if callable(getattr(model, "get_output_embeddings", None)):
                found |= {"sensitivity"} | OF_THE_BODY
        return found

    # -- the four questions ---------------------------------------------------------------------------------------

    plans = True
    differentiates = frozenset({"logits"})

    @property
    def foreign(self) -> bool:
        """See `Engine`."""
        return bool(getattr(self.generator, "foreign", False))

    def sample(self, role: str, k: int) -> Rollout:
        """See `Engine`."""
        config = self.config
        stream = ROLLOUT if role == POLICIES[0] or config.common != "none" else ROLLOUT_L
        if self.planner is None:
            drawn = prompts_of(self.prompts, config.prompts_per_step, config.seed, k)
            return self._written(role, [p for p in drawn for _ in range(config.group)], stream, k)
        plan = self.planner(self._line(k), k)
        if plan.writes:
            writer, written = LanguageWriter(self, role, stream, k), None
            for component, ask in plan.writes:
                written = component.write(writer, ask, plan, written)
            assert written is not None
            return writer.rollout(written)
        whole = self._written(role, [self.prompts[i] for i in plan.start.tolist()], stream, k)
        return self._refilled(role, whole, plan, stream, k) if plan.attempts else whole

    def _line(self, k: int) -> Callable[[int], Tensor]:
        """Numbers of the prompts that stand in line for iteration k: its own first, then those of later ones."""
        count, seed = self.config.prompts_per_step, self.config.seed

        def line(number: int) -> Tensor:
            ahead = range(-(-number // count))
            drawn = [p for step in ahead for p in prompts_of(self.prompts, count, seed, k + step)]
            return torch.tensor([self.number[p.ids] for p in drawn[:number]])

        return line

    def _written(self, role: str, prompts: Sequence[Prompt], stream: int, k: int) -> Rollout:
        """One completion a row, each process writing its own."""
        config = self.config
        u = uniforms(len(prompts), config.max_new_tokens, config.seed, stream, k)[self.share.rows]
        # a server has weights of its own: nothing is gathered for it
        with (self.roles.model if self.foreign else self.roles.writing)(role) as model:
            mine = self.generator(model, prompts[self.share.rows], u)
        whole = gather(self.processes, mine, prompts, self.pad_id, lambda r: texts(r, self.tokenizer))
        self.samples += int(whole.mask.sum())
        return whole

    @torch.no_grad()
    def _refilled(self, role: str, whole: Rollout, plan: RolloutPlan, stream: int, k: int) -> Rollout:
        """The rows of groups with equal rewards written again, from starts to spare; every process writes them all."""
        spare = iter(plan.spare.tolist())
        for attempt in range(1, plan.attempts + 1):
            replaced = silent(self.rewards(whole), whole.group)
            prompts = {row: number for rows, number in zip(replaced, spare, strict=False) for row in rows}
            if not prompts:
                break
            chosen = [self.prompts[number] for number in prompts.values()]
            u = uniforms(whole.size, self.config.max_new_tokens, self.config.seed, stream, k, attempt)
            with self.roles.writing(role) as model:
                new = self.generator(model, chosen, u[: len(chosen)])
            self.samples += int(new.mask.sum())
            whole = replaced_rows(whole, list(prompts), new, self.pad_id)
            whole = dataclasses.replace(whole, texts=texts(whole, self.tokenizer))
        return whole

    def score(self, role: str, rows: Rollout) -> Scores:
        """See `Engine`."""
        return self.scores([role], rows)[0]

    def scores(self, roles: Sequence[str], rows: Rollout) -> list[Scores]:
        """See `Engine`: the reference is evaluated once."""
        mask = rows.mask
        with precision(self.config.dtype, self.processes.device):
            with torch.no_grad():
                law = self.roles.logits("reference", rows).log_softmax(-1) if self.referred else None
                reference = None if law is None else law.gather(-1, rows.completions[..., None])[..., 0] * mask
            found = []
            for role in roles:
                stats = token_statistics(self.roles.logits(role, rows), rows.completions, law)
                logp = stats.logp * mask
                near = logp.detach() if reference is None else reference
                found.append(Scores(logp, stats.kl * mask, stats.entropy * mask, near))
        return found

    def rewards(self, rows: Rollout) -> Tensor:
        """See `Engine`; a row that goes on in the next iteration is not paid yet."""
        with precision(self.config.dtype, self.processes.device):
            return _paid(self.roles.rewards(rows), rows)

    def parameters(self, role: str) -> Mapping[str, nn.Parameter]:
        """See `Engine`."""
        return self.roles.parameters(role)

    # -- more ------------------------------------------------------------------------------------------------------

    def acting(self, role: str) -> contextlib.AbstractContextManager[Any]:
        """See `Engine`: an adapter must be the active one while its activations are recomputed."""
        return self.roles.model(role)

    def terms(self, rows: Rollout) -> Tensor | None:
        """See `Engine`."""
        terms = getattr(self.roles.reward, "terms", None)
        return _paid(terms(rows), rows) if terms is not None else None

    def values(self, role: str, rows: Rollout) -> Tensor:
        """See `Engine`."""
        with precision(self.config.dtype, self.processes.device):
            return self.roles.values(role, rows)

    def logits(self, role: str, rows: Rollout) -> Tensor:
        """See `Engine`."""
        with precision(self.config.dtype, self.processes.device):
            return self.roles.logits(role, rows)

    def tensors(self, role: str, rows: Rollout, names: Collection[str]) -> dict[str, Tensor]:
        """See `Engine`: the logits."""
        return {"logits": self.logits(role, rows)} if "logits" in names else {}

    @torch.no_grad()
    def start_features(self, starts: Tensor) -> Tensor:
        """See `Engine`: the frozen reference's last hidden state at each prompt's end."""
        for g in dict.fromkeys(starts.tolist()):
            if g not in self.described:  # each by itself: its bits must not depend on what it is batched with
                row = from_pairs([(self.prompts[g], (self.pad_id,))], self.pad_id, self.processes.device)
                with precision(self.config.dtype, self.processes.device), self.roles.model("reference") as model:
                    self.described[g] = hidden_states(model, row)[0, row.width - 1].float().cpu()
        return torch.stack([self.described[g] for g in starts.tolist()])

    def fields(self, role: str, rows: Rollout, needs: Collection[str]) -> dict[str, Any]:
        """See `Engine`."""
        found: dict[str, Any] = dict(rows.extras) | {name: function(rows) for name, function in self.extra.items()}
        found["group"] = [self.number[p.ids] for p in rows.prompts]
        found["completions"] = rows.completions
        if "answer" in needs and "answer" not in found:
            numbers: dict[str, int] = {}
            found["answer"] = [numbers.setdefault(str(text), len(numbers)) for text in rows.texts]
        if "target" in needs:
            found.setdefault("target", rows.completions)
        if {"logits", "score_norm", "sensitivity"} & set(needs):
            self._of_logits(role, rows, needs, found)
        if "start_features" in needs:
            found.setdefault("start_features", self.start_features(torch.tensor(found["group"])).to(rows.logp))
        if "hidden" in needs and "hidden" not in found:
            with precision(self.config.dtype, self.processes.device), self.roles.model(role) as model:
                before = hidden_states(model, rows)[:, rows.width - 1 : rows.width - 1 + rows.horizon]
            found["hidden"] = before / self.config.temperature  # so that the last layer's weights give the logits
        return found

    def _of_logits(
        self, role: str, rows: Rollout, needs: Collection[str], found: dict[str, Any]
    ) -> None:
        logits = self.logits(role, rows)
        if "score_norm" in needs:
            found.setdefault("score_norm", logit_score_norm(logits, rows.completions))
        if "sensitivity" in needs and "sensitivity" not in found:
            with self.roles.model(role) as model:
                head = model.get_output_embeddings().weight.detach()
            head = head.full_tensor() if hasattr(head, "full_tensor") else head  # of weights in pieces
            found["sensitivity"] = sensitivity(logits, rows.completions, head, rows.mask.bool())
        if "logits" in needs:
            found.setdefault("logits", logits)

    def again(self, batch: Any) -> Rollout:
        """See `Engine`."""
        prompts = [self.prompts[g] for g in batch.group.tolist()]
        device = batch.mask.device
        ids, attention = pad_prompts(prompts, self.pad_id, device)
        column = torch.arange(batch.mask.shape[1], device=device)
        lengths = torch.where(batch.mask, column + 1, 0).amax(1)  # a row ends with the policy's own token
        real = column < lengths[:, None]
        completion = torch.where(real, batch.get("completions"), self.pad_id)
        return assemble(
            prompts, ids, attention, completion, lengths, batch.done, torch.zeros_like(batch.old), given=real & ~batch.mask
        )

    def shown(self, groups: Sequence[int]) -> Rollout | None:
        """See `Engine`."""
        rows = [(self.prompts[g], self.demonstrations[g]) for g in groups if g in self.demonstrations]
        if not rows:
            return None
        rollout = from_pairs(rows, self.pad_id, self.processes.device, self.tokenizer)
        logp = rollout.logp.to(next(iter(self.parameters(POLICIES[0]).values())).dtype)
        mask = rollout.mask.to(logp)
        if hasattr(self.generator, "observed"):  # a world's words are not the demonstrator's
            for i, (prompt, completion) in enumerate(rows):
                given = torch.tensor(self.generator.observed(prompt, completion), device=mask.device)
                mask[i, : len(given)] *= ~given
        return dataclasses.replace(rollout, ended=torch.ones_like(rollout.ended), logp=logp, mask=mask)

    @torch.no_grad()
    def greedy(self, groups: Sequence[int]) -> Tensor:
        """See `Engine`: the likeliest token at each place, a baseline that costs tokens."""
        prompts = [self.prompts[g] for g in groups]
        law = self.tokenizer, self.config.dtype, bool, self.roles.unheld
        sampler = Sampler(self.stop_ids, self.pad_id, 1e-6, *law)
        half = torch.full((len(prompts), self.config.max_new_tokens), 0.5, dtype=torch.float64)
        with self.roles.writing(POLICIES[0]) as model:
            best = sampler(model, prompts, half)
        self.samples += int(best.lengths.sum())
        return self.roles.rewards(best)


def _paid(reward: Tensor, rows: Rollout) -> Tensor:
    """[N] or [N, K] rewards, 0 for rows that are not finished."""
    pending = rows.extras.get("pending")
    return reward if pending is None else torch.where(pending.reshape(-1, *[1] * (reward.ndim - 1)), 0, reward)


def demonstrations(
    prompts: Sequence[Prompt], tokenizer: Any, stop_ids: Sequence[int], horizon: int
) -> dict[int, tuple[int, ...]]:
    """Completions shown for prompts with the column `demonstration`, by the prompt's number."""
    found = {}
    for i, prompt in enumerate(prompts):
        if prompt.columns.get(DEMONSTRATION):
            ids = setup.answer_ids(prompt.text, prompt.columns[DEMONSTRATION], tokenizer, stop_ids)
            found[i] = ids[:horizon]
    return found
