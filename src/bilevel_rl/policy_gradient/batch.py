"""`Batch`: the one record that every slot of a recipe reads, a set of responses as [N, T] tensors."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message

# Who provides each field: the sentence that a "missing field" error ends with.
PROVIDERS: dict[str, str] = {
    "reward": "The reward function or reward model: give Batch.make(reward=...)",
    "group": "The sampler: draw several responses a prompt and give the prompt's index as `group`",
    "logp": "The policy: evaluate its log-probabilities on the batch, with gradient",
    "old": "The sampler: keep the log-probabilities that the tokens were drawn with",
    "ref": "The reference policy: evaluate its log-probabilities on the same tokens",
    "entropy": "The policy: compute the entropy of each next-token law along with the log-probabilities",
    "value": "A critic: switch it on, or choose a credit rule without one (leave_one_out, group_norm)",
    "kl": "The policy: compute the exact full-vocabulary KL to the reference, or choose a sampled estimator",
    "advantage": "A credit rule: it runs before this component in the recipe",
    "turn": "A multi-turn task: give the index of each token's turn",
    "state_key": "A multi-turn task whose states recur: give an integer key of the observation of each "
    "token's turn",
    "action_key": "A multi-turn task: give an integer key of the action that each token belongs to",
    "answer": "A task with extractable answers: give an integer id of each response's final answer",
    "duration": "The environment: measure the time that each response (or its action) took",
    "score_norm": "The policy: give 1 - 2 p(y) + sum p^2 for each token "
    "(policy_gradient.credit.optimal_baseline.logit_score_norm)",
    "importance": "Another policy's rollout: the likelihood ratio of each response under this policy",
    "switch": "A hierarchical task: mark the first token of each turn that opens a new segment",
    "value_high": "A hierarchical critic: the value of the high level at each token's turn",
    "confidence": "A probing sampler: the mean exp(-entropy) of short answer probes at each token's turn",
    "accuracy": "A probing sampler: the mean probability of the gold answer at each token's turn",
    "other_advantage": "A game of two agents: the other agent's advantage on the same time axis",
    "predicted_gain": "A curvature model (policy_gradient.weigh.curvature.last_layer_model): m_H of each token",
    "predicted_shift": "A curvature model (policy_gradient.weigh.curvature.last_layer_model): m_F of each token",
    "hint": "A hinting sampler: True at the tokens that were given from the reference solution",
    "hinted": "A hinting sampler: True for the responses that started from a hint",
    "pass_rate": "A record of past rollouts: the share of unhinted successes of the response's prompt",
    "replayed": "A replay buffer: True for the responses that were added from it",
    "baseline": "The sampler: the reward of the greedy response to the same prompt",
    "final_value": "A critic: the value of the state after the last token of a cut response",
    "prompt_value": "A value model of prompts: the predicted mean reward of the response's prompt",
    "demonstration": "A data set with solutions: True for the rows that are demonstrations, not samples",
    "prefix_value": "A sampler that continues from prefixes: the mean return of rollouts from before "
    "each token",
    "sensitivity": "The policy: sum over tokens of W^T(e_y - p), the last layer's log-likelihood "
    "gradient, [N, D]",
    "cover": "A task with a coverage objective: the elements that each step covers, [N, T, M] booleans",
    "behaviour": "A data set: the log-probabilities of the policy that generated it",
    "target": "A data set: the gold token of each position",
    "logits": "The policy: its next-token logits, [N, T, V]",
    "winner": "A data set of preferences: True for the preferred response of each group",
    "tokens_in": "The sampler: the prompt's tokens, for policies that evaluate a batch again",
    "completions": "The sampler: the response's tokens, for policies that evaluate a batch again",
    "window_start": "A windowed sampler: the column where this iteration's tokens of each response begin",
    "set_id": "A vine sampler: the index of the set of responses that each response was put in",
    "segment": "A sampler: the number of the segment of each token (else cut by probability)",
    "path": "A tree sampler: the number of the node of each response at each depth, [N, D]",
    "depth": "A tree sampler: which depth of the tree each token belongs to",
    "role": "A hierarchical task: 0 for action tokens, 1 for sub-goals, 2 for switch decisions",
    "switch_probability": "A hierarchical policy: the probability of a switch at each token's turn",
    "start_potential": "A probing sampler: the potential before the first step",
    "start_features": "An engine that knows its starts: numbers that describe each one, [N, D]",
    "pending": "A windowed sampler: True for the responses that go on in the next iteration",
    "demonstrations": "A data set with solutions: give prompts the column `demonstration`",
    "gold_answers": "A data set with answers: give prompts the column `answer`",
    "matching_error": "A flow (flows.FlowEngine with likelihood=Matching): its velocity's squared error at noised samples, "
    "with gradient",
    "matching_error_old": "A flow (flows.FlowEngine with likelihood=Matching): the same error under the policy that drew",
    "matching_time": "A flow (flows.FlowEngine with likelihood=Matching): the times at which errors are taken",
    "velocity_gap": "A flow (flows.FlowEngine): its velocity's squared distance from the reference's, with gradient",
    "hidden": "The policy: the input of its last layer at each token, [N, T, D]",
}

_TOKEN = (
    "reward",
    "logp",
    "old",
    "ref",
    "entropy",
    "value",
    "kl",
    "advantage",
    "weight",
    "counted",
    "turn",
    "state_key",
)


@dataclasses.dataclass(frozen=True)
class Batch:
    r"""N responses of at most T tokens, padded; nothing outside `mask` is ever read.

    Attributes:
        mask: [N, T] bool, True at the tokens that the policy chose (not prompt, observation or padding).
        reward: [N, T, K], K reward terms; their sum is the reward unless a component says otherwise.
        group: [N] integer, the prompt of each response.
        logp: [N, T], log-probabilities under the policy being trained, in nats, with gradient.
        old: [N, T], under the policy that drew the tokens.
        ref: [N, T], under the reference.
        entropy: [N, T], entropy of the next-token law, in nats (with gradient when a regulariser uses it).
        value: [N, T], a critic's value of the state before each token, in units of reward.
        kl: [N, T], exact KL(policy || reference) of each next-token law, in nats.
        advantage: [N, T], written by the credit slot.
        weight: [N, T], written by the weigh slot.
        counted: [N, T] bool, tokens that the loss's means count; None: all of `mask`.
        trajectory: [N] integer, unique; the row number unless given.
        turn: [N, T] integer, index of the turn of each token.
        state_key: [N, T] integer, key of the observation at each token's turn.
        answer: [N] integer, id of the final answer.
        length: [N] integer, tokens a response; counted from the mask unless given.
        duration: [N] or [N, T], time that it took, in seconds.
        done: [N] bool, the episode ended by itself.
        truncated: [N] bool, cut by a limit.
        extras: further tensors with first axis N, by the names of `PROVIDERS`.
        memory: what stateful components remember, by component name (see `Recipe.init`).
        progress: share of training done, in [0, 1].
        iteration: number of the iteration; with a component's seed it fixes all its random choices.
        tokens, sequences, counted_tokens: size of the whole batch when this is a part of it, so that the losses
        of the parts add up.

    Example:
        >>> import torch
        >>> batch = Batch.make(mask=[[1, 1], [1, 0]], reward=[1.0, 0.0], group=[0, 0])
        >>> batch.score.tolist(), batch.reward[..., 0].tolist()
        ([1.0, 0.0], [[0.0, 1.0], [0.0, 0.0]])
    """

    mask: Tensor
    reward: Tensor
    group: Tensor
    trajectory: Tensor
    length: Tensor
    done: Tensor
    truncated: Tensor
    logp: Tensor | None = None
    old: Tensor | None = None
    ref: Tensor | None = None
    entropy: Tensor | None = None
    value: Tensor | None = None
    kl: Tensor | None = None
    advantage: Tensor | None = None
    weight: Tensor | None = None
    counted: Tensor | None = None
    turn: Tensor | None = None
    state_key: Tensor | None = None
    answer: Tensor | None = None
    duration: Tensor | None = None
    extras: Mapping[str, Tensor] = dataclasses.field(default_factory=dict)
    memory: Mapping[str, Mapping[str, Tensor]] = dataclasses.field(default_factory=dict)
    progress: float = 0.0
    iteration: int = 0
    tokens: float | None = None
    sequences: float | None = None
    counted_tokens: float | None = None

    @classmethod
    def make(
        cls,
        mask: Any,
        reward: Any,
        group: Any = None,
        trajectory: Any = None,
        length: Any = None,
        done: Any = None,
        truncated: Any = None,
        **fields: Any,
    ) -> Batch:
        """Build a batch with its defaults filled in.

        Args:
            mask: [N, T].
            reward: [N] (paid at the last action token), [N, T], or [N, T, K]; for [N, K] see
                `paid_at_end`.
            group: [N]; each response its own group when missing.
            trajectory: [N]; row numbers when missing.
            length: [N]; counted when missing.
            done: [N]; True when missing.
            truncated: [N]; not `done` when missing.
            **fields: the other attributes of `Batch`; a name that is not one of them goes to `extras`.

        Raises:
            InvalidConfig: a shape that does not fit `mask`, or an unknown name.
        """
        mask = torch.as_tensor(mask).bool()
        if mask.ndim != 2:
            raise InvalidConfig(
                message(
                    "Batch.mask", f"shape {tuple(mask.shape)}", "it must be [N, T]", "Stack padded responses"
                )
            )
        n, device = mask.shape[0], mask.device
        reward = torch.as_tensor(reward, device=device)
        if not reward.is_floating_point():
            reward = reward.to(torch.get_default_dtype())
        if reward.ndim == 1:
            reward = paid_at_end(mask, reward[:, None])
        elif reward.ndim == 2:
            reward = reward[..., None]

        def ids(value: Any, default: Tensor, dtype: torch.dtype = torch.long) -> Tensor:
            return default if value is None else torch.as_tensor(value, device=device).to(dtype)

        rows = torch.arange(n, device=device)
        done = ids(done, torch.ones(n, dtype=torch.bool, device=device), torch.bool)
        known = {field.name for field in dataclasses.fields(cls)}
        _known(set(fields) - known)
        extras = {**fields.pop("extras", {}), **{k: fields.pop(k) for k in list(fields) if k not in known}}
        given: dict[str, Any] = {
            k: torch.as_tensor(v, device=device) if _is_data(k, v) else v for k, v in fields.items()
        }
        batch = cls(
            mask=mask, reward=reward, group=ids(group, rows), trajectory=ids(trajectory, rows),
            length=ids(length, mask.sum(1)), done=done, truncated=ids(truncated, ~done, torch.bool),
            extras={k: torch.as_tensor(v, device=device) for k, v in extras.items()},
            **given,
        )  # fmt: skip
        batch.check_shapes()
        return batch

    # -- sizes and sums -------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.mask.shape[0]

    @property
    def score(self) -> Tensor:
        """[N]: the sum of all reward terms over the action tokens of each response."""
        return self.scores.sum(-1)

    @property
    def scores(self) -> Tensor:
        """[N, K]: the sum of each reward term over the action tokens of each response."""
        if not self.reward.shape[-1]:
            return self.reward.new_zeros((len(self), 0))
        # term by term: each sum then has the bits of a sum over that term alone
        return torch.stack([torch.where(self.mask, term, 0).sum(1) for term in self.reward.unbind(-1)], -1)

    @property
    def token_reward(self) -> Tensor:
        """[N, T]: the sum of the reward terms at each action token, 0 elsewhere."""
        return torch.where(self.mask, self.reward.sum(-1), 0)

    @property
    def current(self) -> Tensor | None:
        """[N, T]: `logp` where it is known, else `old` (before the first step they are equal)."""
        return self.old if self.logp is None else self.logp

    def spread(self, values: Tensor) -> Tensor:
        """[N] -> [N, T]: one number a response at each of its action tokens, 0 elsewhere."""
        return torch.where(self.mask, values[:, None], 0)

    # -- access to fields -----------------------------------------------------------------------------------

    def has(self, name: str) -> bool:
        """True when the field (or extra) is present."""
        return self.extras.get(name) is not None or getattr(self, name, None) is not None

    def get(self, name: str) -> Tensor:
        """A field or extra by name; the caller has checked that it is there."""
        value = self.extras.get(name)
        return getattr(self, name) if value is None else value

    def inside(self, name: str) -> Tensor:
        """A field by name; if it is floating and [N, T, ...], 0 outside the mask (and so is its gradient)."""
        value = self.get(name)
        if not value.is_floating_point() or value.shape[:2] != self.mask.shape:
            return value
        return torch.where(self.mask.reshape(*self.mask.shape, *[1] * (value.ndim - 2)), value, 0)

    @property
    def fields(self) -> frozenset[str]:
        """Names of all the fields and extras that are present."""
        own = {f.name for f in dataclasses.fields(self) if getattr(self, f.name) is not None}
        return frozenset(own - {"extras", "memory"} | set(self.extras))

    # -- new batches ----------------------------------------------------------------------------------------

    def replace(self, **fields: Any) -> Batch:
        """A copy with other values; names that are not attributes go to `extras`."""
        own = {f.name for f in dataclasses.fields(self)}
        extras = {k: v for k, v in fields.items() if k not in own}
        if extras:
            fields["extras"] = {**fields.get("extras", self.extras), **extras}
        return dataclasses.replace(self, **{k: v for k, v in fields.items() if k in own})

    def map(self, function: Any) -> Batch:
        """Apply a tensor function to every tensor (memory excepted)."""
        own: dict[str, Any] = {
            f.name: function(getattr(self, f.name))
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **own, extras={k: function(v) for k, v in self.extras.items()})

    def rows(self, index: Tensor) -> Batch:
        """The responses at `index` (integers or a boolean mask), in that order."""
        return self.map(lambda x: x[index])

    def to(self, device: Any = None, dtype: torch.dtype | None = None) -> Batch:
        """Move to a device; `dtype` is for floating-point tensors only."""
        return self.map(lambda x: x.to(device=device, dtype=dtype if x.is_floating_point() else None))

    def pad(self, extra: int) -> Batch:
        """`extra` more columns of padding on the right (zeros, and False in the mask)."""
        t = self.mask.shape[1]

        def widen(name: str, x: Tensor) -> Tensor:
            along = x.ndim >= 2 and x.shape[1] == t and (name in _TOKEN or name not in ("sensitivity",))
            return torch.cat([x, x.new_zeros((x.shape[0], extra, *x.shape[2:]))], 1) if along else x

        own: dict[str, Any] = {
            f.name: widen(f.name, getattr(self, f.name))
            for f in dataclasses.fields(self)
            if isinstance(getattr(self, f.name), Tensor)
        }
        return dataclasses.replace(self, **own, extras={k: widen(k, v) for k, v in self.extras.items()})

    def split(self, size: int) -> list[Batch]:
        """Parts of at most `size` responses whose losses and gradients add up to those of the whole."""
        tokens = self.tokens if self.tokens is not None else float(self.mask.sum())
        sequences = self.sequences if self.sequences is not None else float(len(self))
        rows = torch.arange(len(self), device=self.mask.device)
        counted = None if self.counted is None else float(self.counted.sum())
        whole = {"tokens": tokens, "sequences": sequences, "counted_tokens": counted}
        return [self.rows(part).replace(**whole) for part in rows.split(size)]

    def counting(self) -> Batch:
        """What the loss sees: responses without the tokens that a weight has left out of its means."""
        if self.counted is None:
            return self
        mask = self.mask & self.counted
        return self.replace(mask=mask, tokens=self.counted_tokens, counted=None, counted_tokens=None)

    @staticmethod
    def cat(parts: Sequence[Batch]) -> Batch:
        """Join batches with the same fields, padding to the longest; `memory` and numbers are the first
        one's.
        """
        width = max(part.mask.shape[1] for part in parts)
        parts = [part.pad(width - part.mask.shape[1]) for part in parts]
        first = parts[0]
        own: dict[str, Any] = {
            f.name: torch.cat([getattr(part, f.name) for part in parts])
            for f in dataclasses.fields(first)
            if isinstance(getattr(first, f.name), Tensor)
        }
        extras = {k: torch.cat([part.extras[k] for part in parts]) for k in first.extras}
        return dataclasses.replace(
            first, **own, extras=extras, tokens=None, sequences=None, counted_tokens=None
        )

    # -- checks ---------------------------------------------------------------------------------------------

    def check_shapes(self) -> None:
        """Raise `InvalidConfig` unless every field fits the mask."""
        n, t = self.mask.shape
        for name in self.fields:
            value = self.get(name)
            if not isinstance(value, Tensor):
                continue
            good = value.shape[:1] == (n,) and (name not in _TOKEN or value.shape[:2] == (n, t))
            if not good:
                raise InvalidConfig(
                    message(f"Batch.{name}", f"shape {tuple(value.shape)}",
                            f"its first axes must be {'[N, T]' if name in _TOKEN else '[N]'} = {[n, t]}",
                            "Pad or stack it like the mask")
                )  # fmt: skip

    def check_finite(self) -> None:
        """Raise `InvalidConfig` on a NaN (or an infinite reward) at an action token; log-probabilities may
        be -inf.

        Reads from the device, so call it at the start or in tests rather than in every step.
        """
        for name in ("reward", "logp", "old", "ref", "entropy", "value", "kl", "advantage", "weight"):
            value = getattr(self, name)
            if value is None:
                continue
            inside = value.detach()[self.mask]
            bad = inside.isnan() if name in ("logp", "old", "ref") else ~inside.isfinite()
            if bad.any():
                raise InvalidConfig(
                    message(f"Batch.{name}", f"{int(bad.sum())} values that are NaN or infinite",
                            "action tokens need finite numbers (log-probabilities may be -inf)",
                            PROVIDERS.get(name, "Check the component that wrote it"))
                )  # fmt: skip


def _known(names: set[str]) -> None:
    """Raise `InvalidConfig` for an extra that nobody provides: most likely a slip of the pen."""
    unknown = sorted(names - set(PROVIDERS))
    if unknown:
        raise InvalidConfig(
            message("Batch.make", f"the field {unknown[0]!r}", "names are those of Batch and PROVIDERS",
                    "Rename it, or give a field of your own as extras={...}")
        )  # fmt: skip


def paid_at_end(mask: Tensor, reward: Tensor) -> Tensor:
    """[N, K] -> [N, T, K]: pay each response's reward at its last action token (nothing when it has none)."""
    n, t = mask.shape
    column = torch.arange(t, device=mask.device)
    last = torch.where(mask, column, -1).amax(1) if t else torch.full((n,), -1, device=mask.device)
    hit = column == last[:, None]
    return torch.where(hit[..., None], reward[:, None, :], 0)


_NUMBERS = ("extras", "memory", "progress", "iteration", "tokens", "sequences", "counted_tokens")


def _is_data(name: str, value: Any) -> bool:
    return name not in _NUMBERS and value is not None
