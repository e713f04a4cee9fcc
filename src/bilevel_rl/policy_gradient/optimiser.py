"""`PolicyOptimiser`: a recipe with a rollout, a policy and a step; what the bi-level layer asks of a lower level."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from bilevel_rl.moved import renamed
from bilevel_rl.policy_gradient.batch import Batch
from bilevel_rl.policy_gradient.recipe import Memory, Recipe
from bilevel_rl.policy_gradient.regularizers.kl import KLReward
from bilevel_rl.policy_gradient.steps.plain import SGD, Tensors

__getattr__ = renamed("bilevel_rl.policy_gradient.optimiser", Solver="PolicyOptimiser", State="OptimiserState")

Parameters = Mapping[str, Tensor]


@dataclasses.dataclass(frozen=True)
class OptimiserState:
    """What a step carries.

    Attributes:
        parameters: of the policy, by name.
        step: state of the step.
        memory: of the recipe's stateful components.
        iteration: number of steps taken.
        samples: action tokens drawn so far.
    """

    parameters: Tensors
    step: Tensors
    memory: Memory
    iteration: int = 0
    samples: int = 0


@dataclasses.dataclass(frozen=True)
class PolicyOptimiser:
    r"""One first-order policy optimiser: `step(state, reward, tau, extra_loss)` is all that the bi-level layer knows.

    It ascends $J_\tau = E[r - \tau\log(\pi/\pi_{ref})]$ and descends the extra loss: the leader-aware
    follower gets `extra_loss` = w f. The regularisation is one more reward term a token, so every unbiased
    credit rule sees it.

    Args:
        recipe: slots from reward to regular.
        rollout: (parameters, iteration) -> batch with `old` and `ref`; rewards may be 0. No gradient is taken.
        evaluate: (parameters, batch) -> batch with `logp` (and what the recipe needs) with gradient.
        method: the step.
    """

    recipe: Recipe
    rollout: Callable[[Parameters, int], Batch]
    evaluate: Callable[[Parameters, Batch], Batch]
    method: Any = SGD()

    def init(self, parameters: Parameters) -> OptimiserState:
        """The state before the first step."""
        copy = {name: p.detach().clone() for name, p in parameters.items()}
        return OptimiserState(copy, self.method.init(copy), self.recipe.init())

    @torch.no_grad()
    def decide(self, state: OptimiserState, reward: Callable[[Batch], Tensor], tau: float) -> Batch:
        """Sample, score, select and weigh: a prepared batch that both followers may learn from.

        Args:
            state: the follower that samples.
            reward: batch -> rewards [N, T, K] (or [N, T]), the leader's r_x.
            tau: strength of the regularisation, in units of reward.
        """
        where = (
            self.method.query(state.step, state.parameters)
            if hasattr(self.method, "query")
            else state.parameters
        )
        batch = self.rollout(where, state.iteration).replace(memory=state.memory, iteration=state.iteration)
        values = reward(batch)
        batch = batch.replace(reward=values if values.ndim == 3 else values[..., None])
        if tau:
            batch = batch.replace(reward=KLReward(tau)(batch))
        return self.recipe.prepare(batch)

    def learn(
        self, state: OptimiserState, batch: Batch, extra_loss: Callable[[Batch], Tensor] | None = None
    ) -> tuple[OptimiserState, dict[str, Tensor]]:
        """One step on a prepared batch; the new state and the terms of the loss."""
        where = (
            self.method.query(state.step, state.parameters)
            if hasattr(self.method, "query")
            else state.parameters
        )
        leaves = {name: p.detach().requires_grad_() for name, p in where.items()}
        seen = self.evaluate(leaves, batch)
        loss, terms = self.recipe.objective(seen)
        if extra_loss is not None:
            extra = extra_loss(seen)
            loss, terms = loss + extra, {**terms, "extra": extra.detach()}
        gradients = torch.autograd.grad(loss, list(leaves.values()), allow_unused=True)
        gradient = {
            name: torch.zeros_like(leaf) if g is None else g
            for (name, leaf), g in zip(leaves.items(), gradients, strict=True)
        }
        parameters, step = self.method.step(state.step, state.parameters, gradient)
        memory = self.recipe.update(state.memory, seen)
        return (
            OptimiserState(parameters, step, memory, state.iteration + 1, state.samples + int(batch.mask.sum())), terms,
        )  # fmt: skip

    def step(
        self, state: OptimiserState, reward: Callable[[Batch], Tensor], tau: float,
        extra_loss: Callable[[Batch], Tensor] | None = None,
    ) -> tuple[OptimiserState, Batch]:  # fmt: skip
        """Sample and learn once.

        Returns:
            the new state, and the batch that it learned from.
        """
        batch = self.decide(state, reward, tau)
        state, _ = self.learn(state, batch, extra_loss)
        return state, batch
