"""What a kind of policy must answer to be learnt on two levels: four questions, and a few more that it may decline.

    sample(role, k)       a batch of rows that the role's policy writes in iteration k, of all processes
    score(role, rows)     log-probability, exact KL, entropy and the reference's log-probability of every action
    rewards(rows)         r_x, differentiable in x
    parameters(role)      what a role trains

A *row* is one episode: the policy's actions with whatever they answer, T at most. `levels` reads of a batch its size, mask,
lengths, ends and groups (rows with one group answer the same start), and takes rows of it; the rest is the engine's own.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

from torch import Tensor, nn

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.levels.weights import Weights
from bilevel_rl.policy_gradient.rollout.ask import RolloutPlan

POLICIES = ("policy", "policy_l")  # theta and theta^L
CRITICS = ("critic", "critic_l")
REWARD = "reward"  # x


class Rows(Protocol):
    """A batch of N episodes with at most T actions of the policy.

    Attributes:
        size: N.
        mask: [N, T] 1 at the policy's own actions, floating.
        lengths: [N] actions of each row.
        ended: [N] whether it ended by itself, and not at the limit.
        group: [N] integer: rows of one group answer the same start.
    """

    @property
    def size(self) -> int: ...
    @property
    def mask(self) -> Tensor: ...
    @property
    def lengths(self) -> Tensor: ...
    @property
    def ended(self) -> Tensor: ...
    @property
    def group(self) -> Tensor: ...

    def rows(self, index: Any) -> Any:
        """The rows of a slice or an index tensor."""
        ...


class Scores(NamedTuple):
    """At each action: [N, T] each, 0 where the mask is 0, in nats.

    Attributes:
        logp: log-probability of the action.
        kl: exact KL of the law that it was drawn from to the reference's.
        entropy: of that law.
        reference: log-probability of the action under the reference, without a graph.
    """

    logp: Tensor
    kl: Tensor
    entropy: Tensor
    reference: Tensor


class Engine(Weights):
    """The four questions, and defaults for what only some engines know.

    Attributes:
        names: roles that train, in a fixed order: of `POLICIES`, `CRITICS`, and `REWARD`.
        referred: whether there is a reference; where not, the KL is 0 and no figure of a run.
        samples: actions drawn so far, of all policies and processes.
        planner: (candidates, k) -> what a recipe wants generated in iteration k; None: whatever the engine draws. An
            engine that does not ask it has `plans = False`, and recipes with a rollout are refused.
        differentiates: names of the tensors beyond scores that losses may differentiate in (see `tensors`).
    """

    names: tuple[str, ...]
    plans: bool = False
    referred: bool = True
    samples: int = 0
    differentiates: frozenset[str] = frozenset()
    planner: Callable[[Callable[[int], Tensor], int], RolloutPlan] | None = None

    @abc.abstractmethod
    def sample(self, role: str, k: int) -> Any:
        """Rows that the role's policy writes in iteration k, a function of the seed and k; counts them in `samples`."""

    @abc.abstractmethod
    def score(self, role: str, rows: Any) -> Scores:
        """What a policy says of some rows, with a graph where gradients are enabled."""

    @abc.abstractmethod
    def rewards(self, rows: Any) -> Tensor:
        """[N] r_x, with a graph in x where gradients are enabled."""

    @abc.abstractmethod
    def parameters(self, role: str) -> Mapping[str, nn.Parameter]:
        """A role's trained parameters by name, in a fixed order."""

    @property
    def foreign(self) -> bool:
        """Whether rows come from another law than the policy's own, whose log-probabilities they carry as `logp`."""
        return False

    # -- what an engine may do better than the default -----------------------------------------------------------

    def scores(self, roles: Sequence[str], rows: Any) -> list[Scores]:
        """What several policies say of the same rows; an engine may evaluate the reference once."""
        return [self.score(role, rows) for role in roles]

    def acting(self, role: str) -> contextlib.AbstractContextManager[Any]:
        """Where a backward pass through the role belongs, if it must know (recomputed adapters)."""
        return contextlib.nullcontext()

    def terms(self, rows: Any) -> Tensor | None:
        """[N, K] parts whose sum is the reward, for recipes that weigh them; None: the reward is one number."""
        return None

    # -- what an engine may decline ------------------------------------------------------------------------------

    def values(self, role: str, rows: Any) -> Tensor:
        """[N, T] a critic's value before each action."""
        raise self._declines("a critic", "values(role, rows)")

    def logits(self, role: str, rows: Any) -> Tensor:
        """[N, T, A] of the law of each action."""
        raise self._declines("the logits of actions", "logits(role, rows)")

    def tensors(self, role: str, rows: Any, names: Collection[str]) -> dict[str, Tensor]:
        """What losses and regularisers differentiate in beyond scores, by the names that their cards declare.

        [N, ...] each, with a graph where gradients are enabled: logits for a loss on whole laws, an error of a velocity
        for a policy that has no likelihood.
        """
        raise self._declines("tensors with a gradient", "tensors(role, rows, names)")

    def start_features(self, starts: Tensor) -> Tensor:
        """[n, D] what is known of starts [n] before anything is written: numbers that say alike of alike ones."""
        raise self._declines("features of starts", "start_features(starts)")

    def fields(self, role: str, rows: Any, needs: Collection[str]) -> dict[str, Any]:
        """Fields of `Batch` that components need beyond scores and rewards, by name."""
        return {}

    def again(self, batch: Any) -> Any:
        """The rows of a `Batch` whose rows were selected, replayed or shown."""
        raise self._declines("selected or replayed rows", "again(batch)")

    def shown(self, groups: Sequence[int]) -> Any | None:
        """Demonstrations of these groups as rows; None: there are none."""
        return None

    def greedy(self, groups: Sequence[int]) -> Tensor:
        """[Q] reward of the likeliest row of each group."""
        raise self._declines("greedy rows", "greedy(groups)")

    def moved(self) -> None:
        """Called once when an iteration's steps are done; for engines with something that follows the policy."""

    def _declines(self, what: str, method: str) -> InvalidConfig:
        return InvalidConfig(
            message(type(self).__name__, f"a question for {what}", "this engine does not answer it",
                    f"Write its method {method}, or choose a recipe that does without")
        )  # fmt: skip
