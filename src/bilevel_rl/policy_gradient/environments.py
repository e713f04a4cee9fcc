"""Recipes in environments of Gymnasium: a small policy in Torch, whose episodes are the rows of a batch.

A row is an episode, a token a step. Every component that reads rewards, log-probabilities, entropies, groups, answers or
covers works on it; all rows are one group, since they begin alike in law. What can't be joined: rollouts that go on from the
middle of a row (`vine`, `tree`, `windows`, hints), because an environment of Gymnasium can't be put into a state: Poly-PPO's
sets are episodes from fresh starts here; and an exact KL of a step's law.
"""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Mapping
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor

from bilevel_rl.host import GymnasiumHost
from bilevel_rl.policy_gradient.batch import Batch


class StepPolicy(torch.nn.Module):
    """A network of two hidden layers: a softmax over numbered actions, or a normal law of vectors that the host clips.

    Args:
        observations: o.
        actions: numbered ones, or coordinates of a vector.
        discrete: which of the two.
        width: units of a hidden layer.
        seed: of its first weights.
    """

    def __init__(self, observations: int, actions: int, discrete: bool, width: int = 64, seed: int = 0):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        sizes, self.discrete = [observations, width, width, actions], discrete
        self.layers = torch.nn.ModuleList(torch.nn.Linear(a, b) for a, b in itertools.pairwise(sizes))
        for i, layer in enumerate(self.layers):
            bound = (3 / layer.in_features) ** 0.5 * (0.01 if i == 2 else 1.0)
            torch.nn.init.uniform_(layer.weight, -bound, bound, generator=generator)
            torch.nn.init.zeros_(layer.bias)
        self.log_std = torch.nn.Parameter(torch.zeros(0 if discrete else actions))

    def forward(self, obs: Tensor) -> torch.distributions.Distribution:
        """The law of actions, [..., o] -> batched over the leading axes."""
        v = obs
        for layer in self.layers[:-1]:
            v = torch.tanh(layer(v))
        out = self.layers[-1](v)
        if self.discrete:
            return torch.distributions.Categorical(logits=out)
        return torch.distributions.Independent(torch.distributions.Normal(out, self.log_std.exp()), 1)


@dataclasses.dataclass
class Episodes:
    """Rollout and evaluation of a `PolicyOptimiser` in an environment of Gymnasium.

    Args:
        environment: id or function, as `host.GymnasiumHost` takes it.
        rows: episodes of a batch.
        steps: of an episode at most; then it is cut.
        width: of the policy's hidden layers.
        seed: of weights, starts and actions.
        answer: observations [T + 1, o] of one episode -> a number, what two episodes have in common when they are alike.
        cover: observation [o] -> the number of the element that it covers, of `elements` in all.
        elements: M.

    Example:
        >>> from bilevel_rl.policy_gradient.optimiser import PolicyOptimiser
        >>> from bilevel_rl.policy_gradient.recipes import named
        >>> episodes = Episodes("CartPole-v1", rows=4, steps=5, width=8)
        >>> optimiser = PolicyOptimiser(named("rloo"), episodes.rollout, episodes.evaluate)
        >>> state, batch = optimiser.step(optimiser.init(episodes.parameters()), episodes.reward, tau=0.0)
        >>> state.samples, tuple(batch.mask.shape)
        (20, (4, 5))
        >>> episodes.close()
    """

    environment: str | Callable[[], gymnasium.Env]
    rows: int = 32
    steps: int = 200
    width: int = 64
    seed: int = 0
    answer: Callable[[np.ndarray], int] | None = None
    cover: Callable[[np.ndarray], int] | None = None
    elements: int = 0

    def __post_init__(self) -> None:
        self.host = GymnasiumHost(self.environment, self.rows, seed=self.seed, horizon=self.steps)
        discrete = isinstance(self.host.action_space, gymnasium.spaces.Discrete)
        self.policy = StepPolicy(self.host.observation_size, self.host.action_size, discrete, self.width, self.seed)

    def parameters(self) -> dict[str, Tensor]:
        """Of the policy, before the first step."""
        return dict(self.policy.named_parameters())

    def close(self) -> None:
        """Give the copies back."""
        self.host.close()

    def reward(self, batch: Batch) -> Tensor:
        """What the environment paid, [N, T, 1]: the reward of those who shape none."""
        return batch.reward[..., :1]

    @torch.no_grad()
    def rollout(self, parameters: Mapping[str, Tensor], iteration: int) -> Batch:
        """One episode a copy from a fresh start, under these parameters; transitions counted are those in the mask."""
        generator = np.random.default_rng([self.seed, iteration])
        torch_seed = int(generator.integers(2**31))
        self.host.resets = iteration  # starts follow from the iteration, so that a run can be repeated
        obs, alive, seen = self.host.reset(), np.ones(self.rows, bool), []
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(torch_seed)
            for _ in range(self.steps):
                action = self._law(parameters, torch.as_tensor(obs)).sample()
                step = self.host.step(action.numpy())
                seen.append((obs, action.numpy(), step.reward, alive, step.terminated & alive, step.observation_next))
                alive = alive & ~(step.terminated | step.truncated)
                obs = self.host.observation
        obs, action, reward, mask, ended, after = (np.stack(v, 1) for v in zip(*seen, strict=True))
        path = np.concatenate([obs[:, :1], after], 1)
        found: dict[str, Any] = {"tokens_in": torch.as_tensor(obs), "completions": torch.as_tensor(action)}
        if self.answer is not None:
            length = mask.sum(1)
            found["answer"] = [int(self.answer(path[i, : length[i] + 1])) for i in range(self.rows)]
        if self.cover is not None:
            number = np.array([[self.cover(o) for o in row] for row in after])
            found["cover"] = torch.nn.functional.one_hot(torch.as_tensor(number), self.elements).bool()
        batch = Batch.make(mask=mask, reward=torch.as_tensor(reward, dtype=torch.float32), group=np.zeros(self.rows, int),
                           done=ended.any(1), **found)  # fmt: skip
        batch = self.evaluate(parameters, batch)
        return batch.replace(old=batch.logp, ref=self._uniform(batch))

    def evaluate(self, parameters: Mapping[str, Tensor], batch: Batch) -> Batch:
        """Log-probabilities and entropies of a batch's actions, with gradient."""
        law = self._law(parameters, batch.extras["tokens_in"])
        return batch.replace(logp=law.log_prob(batch.extras["completions"]) * batch.mask, entropy=law.entropy() * batch.mask)

    def _law(self, parameters: Mapping[str, Tensor], obs: Tensor) -> torch.distributions.Distribution:
        return torch.func.functional_call(self.policy, dict(parameters), (obs.float(),))

    def _uniform(self, batch: Batch) -> Tensor:
        """The reference: all choices alike, so that tau is an entropy's; of vectors a density of 1, likewise."""
        size = float(self.host.action_size) if self.policy.discrete else 1.0
        return torch.full(batch.mask.shape, -float(np.log(size))) * batch.mask
