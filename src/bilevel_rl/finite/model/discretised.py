"""A Gymnasium environment with numbers for observations as a finite MDP, and how far the table is from it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import gymnasium
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float
from numpy.typing import ArrayLike

from bilevel_rl.errors import InvalidProblem, message
from bilevel_rl.finite.model import planning
from bilevel_rl.finite.model.mdp import FiniteMDP
from bilevel_rl.loop import precision

MOST = 1_000_000  # ours: cells that a grid may have, visited or not


class TableError(NamedTuple):
    """What a policy is worth in the table and in the environment, both discounted sums of an episode.

    Attributes:
        promised: exact value in the table.
        measured: mean over episodes of the environment itself.
        standard_error: of that mean.
        outside: share of the episodes' steps in cells that the table does not know, where an action is drawn at random.
    """

    promised: float
    measured: float
    standard_error: float
    outside: float

    def __str__(self) -> str:
        return (
            f"the table promises {self.promised:.4g}, the environment gives {self.measured:.4g} ± "
            f"{1.96 * self.standard_error:.2g}: off by {self.promised - self.measured:+.2g}"
        )


@dataclasses.dataclass(frozen=True)
class Discretised:
    """The table of an environment whose observations were sorted into cells.

    Attributes:
        mdp: one state for each cell that was visited, and a last one in which everything is over.
        rewards: [S, A] mean rewards.
        visits: [S, A] how often each pair was tried; pairs that never were are not `allowed` in the MDP.
        centres: [S - 1, o] middle of each state's cell, in the observation's units.
        edges: for each number of the observation, the borders of its cells; what lies beyond falls into the outer ones.
    """

    env: gymnasium.Env
    actions: tuple[Any, ...]
    mdp: FiniteMDP
    rewards: Float[Array, "S A"]
    visits: np.ndarray
    centres: np.ndarray
    edges: tuple[np.ndarray, ...]
    known: dict[int, int]

    def state(self, observation: ArrayLike) -> int | None:
        """The state of an observation; None where its cell was never visited."""
        return self.known.get(_cell(observation, self.edges))

    def follower(self, pi: ArrayLike, seed: int = 0) -> Callable[[Any], Any]:
        """A policy [S, A] of the table as a function from the environment's observations to its actions."""
        policy, rng = np.asarray(pi, float), np.random.default_rng(seed)

        def act(observation):
            s = self.state(observation)
            law = None if s is None else policy[s] / policy[s].sum()
            return self.actions[rng.choice(len(self.actions), p=law)]

        return act

    @precision.double
    def error(self, pi: ArrayLike, episodes: int = 100, seed: int = 0) -> TableError:
        """How far the table is from the environment, for one policy [S, A]: the error of cells and of counts together.

        It is right for this policy alone: ask for the policy that an answer ends with.
        """
        gamma, act = float(self.mdp.discount), self.follower(pi, seed)
        returns, outside, steps = [], 0, 0
        for episode in range(episodes):
            observation, _ = self.env.reset(seed=seed + episode)
            total, weight, over = 0.0, 1.0, False
            while not over and weight > 1e-4:
                outside, steps = outside + (self.state(observation) is None), steps + 1
                observation, reward, terminated, truncated, _ = self.env.step(act(observation))
                total, weight, over = total + weight * float(reward), weight * gamma, terminated or truncated
            returns.append(total)
        promised = float(planning.expected_return(self.mdp, self.rewards, jnp.asarray(pi, float)))
        spread = float(np.std(returns, ddof=1)) if episodes > 1 else float("nan")
        return TableError(promised, float(np.mean(returns)), spread / episodes**0.5, outside / max(1, steps))


@precision.double
def discretised(
    env: gymnasium.Env, bins: int | Sequence[int], steps: int = 100_000, discount: float = 0.95,
    low: float | ArrayLike | None = None, high: float | ArrayLike | None = None, actions: Sequence[Any] | None = None,
    seed: int = 0,
) -> Discretised:  # fmt: skip
    """Count what happens between cells of the observation while actions are drawn at random.

    The table is a model, not the environment: a cell forgets where in it one is, and a pair that was tried n times is known
    to about 1 / sqrt(n). `Discretised.error` says what both cost a policy. An episode that is cut by a time limit is no
    end; one that terminates leads to a last state in which nothing is paid.

    Args:
        env: observations are a box of few numbers.
        bins: cells along each of them.
        steps: transitions to count.
        discount: gamma.
        low, high: [o] where the outer cells begin; by default the space's own bounds.
        actions: what may be done; by default all of a discrete space.
        seed: of resets and actions.

    Raises:
        InvalidProblem: another space of observations, bounds that are not finite, actions that have to be named, a grid of
            more than a million cells.

    Example:
        >>> table = discretised(gymnasium.make("MountainCar-v0"), 8, steps=2000, discount=0.9)
        >>> table.rewards.shape == table.visits.shape == (table.mdp.n_states, 3)
        True
    """
    where, space = "finite.discretised", env.observation_space
    if not isinstance(space, gymnasium.spaces.Box) or len(space.shape) != 1:
        raise InvalidProblem(
            message(where, f"observations in {space}", "they must be a box of numbers [o]",
                    "Wrap the environment (FlattenObservation), or FiniteMDP.from_gymnasium for one with a table")
        )  # fmt: skip
    edges = _edges(where, space, bins, low, high)
    acts = _actions(where, env.action_space, actions)
    counts, paid, starts = _counted(env, edges, acts, steps, seed)
    cells = sorted({cell for pair in counts for cell in (pair[0], pair[2])} - {-1} | set(starts))
    known = {cell: s for s, cell in enumerate(cells)}
    S, A = len(cells) + 1, len(acts)
    end = S - 1
    outcomes: dict[tuple[int, int], dict[int, int]] = {}
    for (cell, a, after), n in counts.items():
        outcomes.setdefault((known[cell], a), {})[end if after == -1 else known[after]] = n
    K = max(map(len, outcomes.values()))
    successors, probabilities = np.full((S, A, K), end), np.zeros((S, A, K))
    visits, rewards = np.zeros((S, A), int), np.zeros((S, A))
    probabilities[:, :, 0] = 1.0  # a cell that was reached and never left counts as an end
    for (s, a), row in outcomes.items():
        visits[s, a] = total = sum(row.values())
        rewards[s, a] = paid[cells[s], a] / total
        probabilities[s, a] = 0
        for k, (after, n) in enumerate(row.items()):
            successors[s, a, k], probabilities[s, a, k] = after, n / total
    allowed = (visits > 0) | (visits.sum(axis=1, keepdims=True) == 0)
    start = np.zeros(S)
    for cell, n in starts.items():
        start[known[cell]] = n / sum(starts.values())
    mdp = FiniteMDP.from_sparse(successors, probabilities, start, discount, np.arange(S) == end, allowed)
    return Discretised(env, acts, mdp, jnp.asarray(rewards), visits, _centres(cells, edges), edges, known)


def _edges(where: str, space: gymnasium.spaces.Box, bins: Any, low: Any, high: Any) -> tuple[np.ndarray, ...]:
    o = space.shape[0]
    least = np.broadcast_to(np.asarray(space.low if low is None else low, float), o)
    most = np.broadcast_to(np.asarray(space.high if high is None else high, float), o)
    if not (np.abs([least, most]) < 1e30).all() or not (least < most).all():  # spaces say 3e38 for "no bound"
        raise InvalidProblem(
            message(where, f"bounds {least.tolist()} to {most.tolist()}", "they must be finite, low < high",
                    "Give low= and high=; what lies beyond falls into the outer cells")
        )  # fmt: skip
    counts = np.broadcast_to(np.asarray(bins, int), o)
    if counts.min() < 1 or np.prod(counts.astype(float)) > MOST:
        raise InvalidProblem(
            message(where, f"bins {counts.tolist()}", f"at least 1 along each number, at most {MOST:,} cells in all",
                    "Take fewer, or only the numbers that matter (TransformObservation)")
        )  # fmt: skip
    return tuple(np.linspace(a, b, n + 1) for a, b, n in zip(least, most, counts, strict=True))


def _actions(where: str, space: gymnasium.Space, actions: Sequence[Any] | None) -> tuple[Any, ...]:
    if actions is not None:
        return tuple(actions)
    if not isinstance(space, gymnasium.spaces.Discrete):
        raise InvalidProblem(
            message(where, f"actions in {space}", "a table needs finitely many", "Give actions=[...], such as torques")
        )
    return tuple(int(space.start) + a for a in range(int(space.n)))


def _cell(observation: ArrayLike, edges: tuple[np.ndarray, ...]) -> int:
    cell = 0
    for value, borders in zip(np.asarray(observation, float), edges, strict=True):
        cell = cell * (len(borders) - 1) + int(np.searchsorted(borders[1:-1], value, side="right"))
    return cell


def _counted(env: gymnasium.Env, edges: Any, acts: tuple[Any, ...], steps: int, seed: int) -> tuple[Any, ...]:
    """Times of (cell, action, next cell or -1), rewards of (cell, action), times of first cells."""
    rng = np.random.default_rng(seed)
    counts: dict[tuple[int, int, int], int] = {}
    paid: dict[tuple[int, int], float] = {}
    starts: dict[int, int] = {}
    cell, episode = -1, 0
    for a in rng.integers(len(acts), size=steps):
        if cell == -1:
            cell, episode = _cell(env.reset(seed=seed + episode)[0], edges), episode + 1
            starts[cell] = starts.get(cell, 0) + 1
        observation, reward, terminated, truncated, _ = env.step(acts[a])
        after = -1 if terminated else _cell(observation, edges)
        key = (cell, int(a), after)
        counts[key] = counts.get(key, 0) + 1
        paid[cell, int(a)] = paid.get((cell, int(a)), 0.0) + float(reward)
        cell = -1 if terminated or truncated else after
    return counts, paid, starts


def _centres(cells: list[int], edges: tuple[np.ndarray, ...]) -> np.ndarray:
    rows = np.zeros((len(cells), len(edges)))
    rest = np.array(cells)
    for j, borders in reversed([*enumerate(edges)]):
        rest, i = np.divmod(rest, len(borders) - 1)
        rows[:, j] = (borders[i] + borders[i + 1]) / 2
    return rows
