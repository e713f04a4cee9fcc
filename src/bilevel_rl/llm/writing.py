"""`LanguageWriter`: rows for the rollout slot, written by a language model from the beginning or from any prefix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.llm.data.prompts import Begun, Prompt
from bilevel_rl.llm.forward import context, precision
from bilevel_rl.llm.roles.policy import token_statistics
from bilevel_rl.llm.sampling.rollout import Rollout, assemble, from_pairs, pad_prompts
from bilevel_rl.llm.sampling.sampler import Sampler, uniforms
from bilevel_rl.policy_gradient.rollout.writing import Written

ANSWER = "answer"  # a prompt's column: the gold answer that probes ask for
AGAIN = 1000  # random streams of an iteration's further calls, beside those of refilling


class LanguageWriter:
    """See `Writer`. Every process writes every row: rows of one call may share a beginning or meet each other.

    Args:
        engine: a `LanguageEngine`: its prompts and generator.
        role: the policy that writes.
        stream, k: of its random numbers.
    """

    def __init__(self, engine: Any, role: str, stream: int, k: int) -> None:
        self.engine, self.role, self.stream, self.k = engine, role, stream, k
        self.horizon, self.calls = engine.config.max_new_tokens, 0

    @torch.no_grad()
    def write(
        self, start: Tensor, begin: Written | None = None, keep: Tensor | None = None, limit: int | None = None
    ) -> Written:
        """See `Writer`. The first call from the beginning draws the numbers of an iteration without this slot."""
        size = len(start)
        kept = torch.zeros(size, dtype=torch.long) if keep is None else keep
        room = (self.horizon - kept).clamp(max=self.horizon if limit is None else limit)
        over = torch.zeros(size, dtype=torch.bool) if begin is None else begin.ended & (kept >= begin.length)
        some = torch.nonzero(~over & (room > 0))[:, 0]
        head = _head(size, begin, kept, over)
        if not len(some):
            return Written(start, **head)
        plain = self.calls == 0 and begin is None and limit is None
        self.calls += 1
        stream = (self.stream, self.k) if plain else (self.stream, self.k, AGAIN + self.calls)
        u = uniforms(size, int(room.max()), self.engine.config.seed, *stream)
        written = Written(start, **head)
        for rows in self._alike(start, kept, some):
            prompts = [
                _begun(self.engine.prompts[start[i]], head["tokens"][i, : kept[i]].tolist()) for i in rows.tolist()
            ]
            with self.engine.roles.writing(self.role) as model:
                new = self.engine.generator(model, prompts, u[rows, : int(room[rows].max())])
            written = _joined(written, kept, rows, new, room)
        column = torch.arange(written.width)
        self.engine.samples += int((written.mask & (column >= kept[:, None]) & ~over[:, None]).sum())
        return written

    def _alike(self, start: Tensor, kept: Tensor, rows: Tensor) -> list[Tensor]:
        """The rows in parts whose beginnings are about equally long: no part runs much beyond what its rows may have."""
        slack = max(self.horizon // 8, 1)
        with self.engine.roles.model(self.role) as model:
            room = context(model)
        longest = max(len(self.engine.prompts[g].ids) for g in start[rows].tolist())
        if room is not None and longest + self.horizon + slack > room:
            slack = 0
        parts = [kept[rows] // (slack + 1) == k for k in sorted(set((kept[rows] // (slack + 1)).tolist()))]
        return [rows[part] for part in parts]

    def rollout(self, written: Written) -> Rollout:
        """The rows as the engine scores them."""
        engine = self.engine
        device = engine.processes.device
        prompts = [engine.prompts[g] for g in written.start.tolist()]
        ids, attention = pad_prompts(prompts, engine.pad_id, device)
        width = max(int(written.length.max()), 1)
        real = torch.arange(width) < written.length[:, None]
        tokens = torch.where(real, written.tokens[:, :width], engine.pad_id)
        logp = written.logp[:, :width].to(next(iter(engine.parameters(self.role).values())).dtype)
        whole = assemble(
            prompts, ids, attention, tokens.to(device), written.length.to(device), written.ended.to(device), logp.to(device),
            tokenizer=engine.tokenizer, given=(real & ~written.mask[:, :width]).to(device),
        )  # fmt: skip
        wide = written.width
        extras = {
            name: (value[:, :width] if value.ndim > 1 and value.shape[1] == wide else value).to(device)
            for name, value in written.fields.items()
        }
        return dataclasses.replace(whole, extras=extras)

    @torch.no_grad()
    def rewards(self, written: Written) -> Tensor:
        """See `Writer`."""
        return self.engine.rewards(self.rollout(written)).cpu()

    def shown(self, start: int) -> tuple[int, ...]:
        """See `Writer`."""
        return self.engine.demonstrations.get(start, ())

    def field(self, name: str, written: Written) -> Tensor:
        """See `Writer`."""
        rows = self.rollout(written)
        value = self.engine.extra[name](rows)
        return torch.nn.functional.pad(value, (0, written.width - value.shape[1]))

    @torch.no_grad()
    def probe(self, written: Written, keep: Tensor, tail: str) -> tuple[Tensor, Tensor]:
        """See `Writer`. The gold answer is the prompt's column `answer`."""
        engine = self.engine
        tail_ids = self._ids(tail) if tail else []
        rows, gold = [], []
        for i, start in enumerate(written.start.tolist()):
            prompt = engine.prompts[start]
            asked = (*prompt.ids, *written.tokens[i, : keep[i]].tolist(), *tail_ids)
            rows.append(Prompt(asked, prompt.text, prompt.columns))
            gold.append(self._ids(prompt.columns[ANSWER]))
        longest = max(len(answer) for answer in gold)
        self._check_room(max(len(row.ids) for row in rows) + longest)
        right = self._scores(from_pairs(list(zip(rows, gold, strict=True)), engine.pad_id, engine.processes.device))[0]
        sampler = Sampler((), engine.pad_id, engine.config.temperature, None, engine.config.dtype, bool, engine.roles.unheld)
        self.calls += 1
        u = uniforms(len(rows), longest, engine.config.seed, self.stream, self.k, AGAIN + self.calls)
        with engine.roles.model(self.role) as model:
            drawn = sampler(model, rows, u)
        engine.samples += drawn.logp.numel()
        within = torch.arange(longest) < torch.tensor([len(answer) for answer in gold])[:, None]
        sure = torch.where(within, (-self._scores(drawn)[1]).exp().cpu(), 0).sum(1) / within.sum(1)
        sized = torch.arange(right.shape[1]) < torch.tensor([len(answer) for answer in gold])[:, None]
        return torch.where(sized, right.exp().cpu(), 0).sum(1) / sized.sum(1), sure

    def _scores(self, rows: Rollout) -> tuple[Tensor, Tensor]:
        """Log-probability and entropy at each token, [N, T]."""
        engine = self.engine
        with precision(engine.config.dtype, engine.processes.device):
            found = token_statistics(engine.roles.logits(self.role, rows), rows.completions, None)
        return found.logp, found.entropy

    def _ids(self, text: Any) -> list[int]:
        if not isinstance(text, str):
            return list(text)
        if self.engine.tokenizer is None:
            raise InvalidConfig(
                message("rollout 'probe'", f"the text {text!r} without a tokenizer", "answers and tail are then token ids",
                        "Give the column `answer` as ids, or a tokenizer")
            )  # fmt: skip
        return list(self.engine.tokenizer(text, add_special_tokens=False)["input_ids"])

    def _check_room(self, longest: int) -> None:
        with self.engine.roles.model(self.role) as model:
            room = context(model)
        if room is not None and longest > room:
            raise InvalidConfig(
                message("rollout 'probe'", f"rows of {longest} tokens with the answer", f"the policy's context holds {room}",
                        "Lower sampling.max_new_tokens")
            )  # fmt: skip


def _begun(prompt: Prompt, ids: Sequence[int]) -> Prompt:
    return Begun((*prompt.ids, *ids), prompt.text, prompt.columns, tuple(ids)) if ids else prompt


def _head(size: int, begin: Written | None, kept: Tensor, over: Tensor) -> dict[str, Any]:
    """What is kept of the rows that are gone on from, as fields of `Written` without `start`."""
    if begin is None:
        none = torch.zeros(size, 0)
        return {"tokens": none.long(), "mask": none.bool(), "length": kept, "ended": over, "logp": none}
    width = int(kept.max()) if size else 0
    inside = torch.arange(width) < kept[:, None]
    return {
        "tokens": torch.where(inside, begin.tokens[:, :width], 0), "mask": begin.mask[:, :width] & inside,
        "length": torch.minimum(kept, begin.length), "ended": over, "logp": torch.where(inside, begin.logp[:, :width], 0),
    }  # fmt: skip


def _joined(written: Written, kept: Tensor, some: Tensor, new: Rollout, room: Tensor) -> Written:
    """The rows, those of `some` with what was written behind their beginnings."""
    tokens, mask, logp = new.completions.cpu(), new.mask.cpu().bool(), new.logp.cpu().float()
    column = torch.arange(new.horizon)
    # what goes beyond a row's room is cut, and what the world said after its last own token with it
    fits = mask & (column < torch.minimum(new.lengths.cpu(), room[some])[:, None])
    length = torch.where(fits, column + 1, 0).amax(1)
    whole = written.length.index_copy(0, some, kept[some] + length)
    over = written.ended.index_copy(0, some, new.ended.cpu() & (new.lengths.cpu() <= room[some]))
    extra = max(int(whole.max()) - written.width, 0)
    found = {n: torch.nn.functional.pad(getattr(written, n), (0, extra)) for n in ("tokens", "mask", "logp")}
    for j, i in enumerate(some.tolist()):
        at, n = int(kept[i]), int(length[j])
        found["tokens"][i, at : at + n] = tokens[j, :n]
        found["mask"][i, at : at + n] = mask[j, :n]
        found["logp"][i, at : at + n] = logp[j, :n]
    return dataclasses.replace(written, **found, length=whole, ended=over)
