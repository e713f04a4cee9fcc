"""A data set: transitions of whole episodes, one after the other, and from which source each came."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from bilevel_rl.errors import InvalidProblem, message

ROWS = ("obs", "action", "reward", "next_obs", "info", "terminated", "over", "source")  # arrays with a row a transition


@dataclasses.dataclass(frozen=True)
class OfflineData:
    """Transitions in the order in which they came, episode after episode.

    Attributes:
        environment: name of the environment that they are of.
        obs: [N, o] float32, before the action.
        action: [N, m] float32, or [N] int32.
        reward: [N] float32, the environment's own.
        next_obs: [N, o] float32, after the action.
        info: [N, p] float32, what the environment said besides.
        terminated: [N] bool, whether the task ended: nothing comes after.
        over: [N] bool, whether it is the last of its episode, for whatever reason.
        source: [N] int32, index into `sources`.
        sources: names of who acted.
        low, high: mean returns of random actions and of the expert, between which scores are normalised; NaN where nobody
            has measured them.

    Example:
        >>> data = OfflineData.of("line", [StoredEpisode(np.zeros((3, 1)), np.zeros((2, 1)), np.ones(2), True)])
        >>> len(data), data.returns().tolist()
        (2, [2.0])
    """

    environment: str
    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    next_obs: np.ndarray
    info: np.ndarray
    terminated: np.ndarray
    over: np.ndarray
    source: np.ndarray
    sources: tuple[str, ...] = ("data",)
    low: float = np.nan
    high: float = np.nan

    @classmethod
    def of(cls, environment: str, episodes: Sequence[StoredEpisode], **about: Any) -> OfflineData:
        """From episodes.

        Args:
            environment: its name.
            episodes: at least one; each has at least one step.
            about: `sources`, `low`, `high`.

        Raises:
            InvalidProblem: no episodes, or one whose arrays do not fit together.
        """
        if not episodes:
            raise InvalidProblem(message(f"data of {environment}", "no episodes", "there must be one", "Collect some"))
        for i, episode in enumerate(episodes):
            episode.check(f"data of {environment}, episode {i}")
        lengths = [len(e.reward) for e in episodes]
        ends = np.cumsum(lengths) - 1
        over, terminated = np.zeros(sum(lengths), bool), np.zeros(sum(lengths), bool)
        over[ends] = True
        terminated[ends] = [e.terminated for e in episodes]
        join = lambda parts, kind: np.concatenate([np.asarray(p) for p in parts]).astype(kind)  # noqa: E731
        numbered = np.issubdtype(np.asarray(episodes[0].action).dtype, np.integer)
        none = [np.zeros((n, 0)) if e.info is None else e.info for e, n in zip(episodes, lengths, strict=True)]
        return cls(
            environment, join([e.obs[:-1] for e in episodes], np.float32),
            join([e.action for e in episodes], np.int32 if numbered else np.float32),
            join([e.reward for e in episodes], np.float32), join([e.obs[1:] for e in episodes], np.float32),
            join(none, np.float32), terminated, over,
            np.repeat([e.source for e in episodes], lengths).astype(np.int32), **about,
        )  # fmt: skip

    def __len__(self) -> int:
        return len(self.reward)

    @property
    def bounds(self) -> np.ndarray:
        """[E, 2] first row of each episode, and one past its last."""
        ends = np.flatnonzero(self.over) + 1
        return np.stack([np.concatenate([[0], ends[:-1]]), ends], 1)

    def returns(self) -> np.ndarray:
        """[E] undiscounted sums of rewards."""
        return np.add.reduceat(self.reward.astype(float), self.bounds[:, 0])

    def rows(self, index: np.ndarray) -> OfflineData:
        """Some of the rows, whole episodes by the caller's care."""
        return dataclasses.replace(self, **{name: getattr(self, name)[index] for name in ROWS})

    def episodes(self, index: Sequence[int] | np.ndarray) -> OfflineData:
        """Some of the episodes, in the order given."""
        return self.rows(np.concatenate([np.arange(*self.bounds[i]) for i in index]))

    def of_source(self, name: str) -> OfflineData:
        """What one source gave."""
        if name not in self.sources:
            raise InvalidProblem(message("data.of_source", repr(name), f"there are {', '.join(self.sources)}", "Name one"))
        return self.rows(self.source == self.sources.index(name))

    def split(self, share: float, seed: int = 0) -> tuple[OfflineData, OfflineData]:
        """Episodes at random in two: a share of them, and the rest; both get at least one."""
        count = len(self.bounds)
        if count < 2:
            raise InvalidProblem(message("data.split", "one episode", "two parts need two", "Collect more"))
        order = np.random.default_rng(seed).permutation(count)
        cut = min(max(round(share * count), 1), count - 1)
        return self.episodes(np.sort(order[:cut])), self.episodes(np.sort(order[cut:]))


@dataclasses.dataclass(frozen=True)
class StoredEpisode:
    """One episode.

    Attributes:
        obs: [T + 1, o], the last one after the last action.
        action: [T, m] or [T].
        reward: [T].
        terminated: whether the task ended; else it was cut, and what would have come is bootstrapped.
        source: index of who acted.
        info: [T, p], or None.
    """

    obs: np.ndarray
    action: np.ndarray
    reward: np.ndarray
    terminated: bool
    source: int = 0
    info: np.ndarray | None = None

    def check(self, where: str) -> None:
        """Raise `InvalidProblem` unless lengths fit together."""
        T = len(self.reward)
        if T < 1 or len(self.action) != T or len(self.obs) != T + 1:
            raise InvalidProblem(
                message(where, f"{len(self.obs)} observations, {len(self.action)} actions, {T} rewards",
                        "an episode of T >= 1 steps has T + 1, T and T", "Keep the observation after the last action")
            )  # fmt: skip


def joined(parts: Sequence[OfflineData]) -> OfflineData:
    """Data sets of one environment as one; sources of the same name are the same source."""
    first = parts[0]
    if any(p.environment != first.environment for p in parts):
        raise InvalidProblem(
            message("offline.joined", f"data of {', '.join(sorted({p.environment for p in parts}))}",
                    "they must be of one environment", "Join what belongs together")
        )  # fmt: skip
    names = tuple(dict.fromkeys(name for p in parts for name in p.sources))
    source = np.concatenate([np.array([names.index(s) for s in p.sources], np.int32)[p.source] for p in parts])
    rows = {name: np.concatenate([getattr(p, name) for p in parts]) for name in ROWS if name != "source"}
    known = [p for p in parts if np.isfinite(p.high)] or [first]
    return OfflineData(first.environment, **rows, source=source, sources=names, low=known[0].low, high=known[0].high)


def mixed(data: OfflineData, shares: dict[str, float], rows: int, seed: int = 0) -> OfflineData:
    """Whole episodes drawn from the sources of a data set until each has its share of the rows.

    Args:
        shares: source -> its share; they sum to one.
        rows: transitions in all; the last episode of each source may exceed its share.

    Raises:
        InvalidProblem: shares that do not sum to one, unknown sources, or one with too few rows.

    Example:
        >>> one = StoredEpisode(np.zeros((5, 1)), np.zeros((4, 1)), np.ones(4), False)
        >>> two = dataclasses.replace(one, source=1)
        >>> data = OfflineData.of("line", [one, one, two, two], sources=("a", "b"))
        >>> np.bincount(mixed(data, {"a": 0.25, "b": 0.75}, 8).source).tolist()
        [4, 8]
    """
    total = sum(shares.values())
    if abs(total - 1) > 1e-6 or min(shares.values(), default=0) < 0:
        raise InvalidProblem(
            message("offline.mixed", f"shares that sum to {total:g}", "they are at least 0 and sum to 1", "Change them")
        )
    rng, parts = np.random.default_rng(seed), []
    for name, share in shares.items():
        one, wanted = data.of_source(name), round(share * rows)
        if len(one) < wanted:
            raise InvalidProblem(
                message(f"offline.mixed[{name!r}]", f"{len(one)} rows", f"{wanted} are asked for", "Collect more")
            )
        order = rng.permutation(len(one.bounds))
        lengths = np.diff(one.bounds[order], axis=1)[:, 0]
        if wanted:
            parts.append(one.episodes(order[: int(np.searchsorted(np.cumsum(lengths), wanted)) + 1]))
    return joined(parts)


def without_empty_sources(data: OfflineData) -> OfflineData:
    """The same rows, whose list of sources names only those that gave some."""
    used = np.unique(data.source)
    place = np.searchsorted(used, data.source).astype(np.int32)
    return dataclasses.replace(data, source=place, sources=tuple(data.sources[i] for i in used))


@dataclasses.dataclass(frozen=True)
class SourceSummary:
    """What one source gave.

    Attributes:
        name: of the source.
        rows, episodes: how many.
        mean, worst, best: return of an episode.
        length: mean steps of an episode.
        ended: share of episodes that ended by themselves.
    """

    name: str
    rows: int
    episodes: int
    mean: float
    worst: float
    best: float
    length: float
    ended: float


def summary(data: OfflineData) -> list[SourceSummary]:
    """What there is, source by source."""
    found, returns, (first, last) = [], data.returns(), data.bounds.T
    for i, name in enumerate(data.sources):
        mine = data.source[first] == i
        if not mine.any():
            continue
        ends = data.terminated[last[mine] - 1]
        r, steps = returns[mine], (last - first)[mine]
        found.append(
            SourceSummary(name, int(steps.sum()), int(mine.sum()), float(r.mean()), float(r.min()), float(r.max()),
                          float(steps.mean()), float(ends.mean()))
        )  # fmt: skip
    return found
