"""Data sets on disk in Minari's format: a folder that `minari.MinariDataset` reads, and that Minari's own files are too."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np

from bilevel_rl.control.environment import Box, Environment
from bilevel_rl.control.offline.checks import check_data
from bilevel_rl.control.offline.data import OfflineData, StoredEpisode
from bilevel_rl.errors import InvalidProblem, StorageFailed, message, require

OURS = "bilevel_rl"  # the key of what we add to Minari's metadata
KEYS = ("observations", "actions", "rewards", "terminations", "truncations")
ENOUGH = 1e-3  # ours: of a return's size, by which the one that was noted may differ from the sum of rewards


def save(data: OfflineData, environment: Environment, folder: str | Path, name: str = "") -> Path:
    """Write a data set as a folder in Minari's format.

    Args:
        folder: that does not exist yet.
        name: the data set's id; made of the environment and the sources when empty.

    Returns:
        The folder.

    Raises:
        InvalidProblem: data that do not fit the environment.
        MissingDependency: the extra `offline` is not installed.
        StorageFailed: the folder exists.
    """
    check_data(data, environment)
    minari, folder = _minari(), Path(folder).absolute()  # Minari counts bytes below absolute paths alone
    if folder.exists():
        raise StorageFailed(message(str(folder), "a folder that exists", "data sets are not overwritten", "Name another"))
    from minari.data_collector.episode_buffer import EpisodeBuffer
    from minari.dataset.minari_storage import MinariStorage

    part = folder.with_name(f"{folder.name}.part")  # whole or not at all
    shutil.rmtree(part, ignore_errors=True)
    part.mkdir(parents=True)
    storage = MinariStorage.new(part, *_spaces(environment), data_format="hdf5")
    storage.update_metadata({
        "dataset_id": name or f"{data.environment}/{'-'.join(data.sources)}-v0", "minari_version": minari.__version__,
        OURS: json.dumps({"environment": data.environment, "sources": data.sources,
                          "low": _known(data.low), "high": _known(data.high), "info_names": environment.info_names}),
    })  # fmt: skip
    buffers, notes = [], []
    for i, (a, b) in enumerate(data.bounds):
        ended = np.zeros((2, b - a), bool)
        ended[0, -1], ended[1, -1] = data.terminated[b - 1], not data.terminated[b - 1]
        # one row more than steps, as Minari keeps infos beside observations
        infos = {"of_step": np.concatenate([data.info[a:b], data.info[b - 1 : b]])} if data.info.shape[1] else None
        buffers.append(EpisodeBuffer(
            id=i, observations=np.concatenate([data.obs[a:b], data.next_obs[b - 1 : b]]), actions=data.action[a:b],
            rewards=data.reward[a:b], terminations=ended[0], truncations=ended[1], infos=infos,
        ))  # fmt: skip
        notes.append({"source": data.sources[data.source[a]], "return": float(data.reward[a:b].sum())})
    storage.update_episodes(buffers)
    storage.update_episode_metadata(notes)
    return part.rename(folder)


def load(where: str | Path, environment: Environment) -> OfflineData:
    """Read a data set, ours or Minari's, and check it for an environment.

    Args:
        where: a folder, or the id of a data set that Minari holds on this machine.

    Raises:
        InvalidProblem: no such data set, missing keys, or whatever `check_data` finds.
        MissingDependency: the extra `offline` is not installed.
    """
    minari, path = _minari(), Path(where).absolute()
    try:
        found = minari.MinariDataset(path) if path.is_dir() else minari.load_dataset(str(where))
    except (ValueError, KeyError, OSError, AssertionError) as error:
        raise InvalidProblem(
            message(str(where), _plain(error), "a folder in Minari's format, or the id of a data set that Minari has here",
                    "Make one with `bilevel-rl offline make`, or `minari download` it")
        ) from error  # fmt: skip
    said = json.loads(found.storage.metadata.get(OURS, "{}"))
    sources = tuple(said.get("sources", ("data",)))
    episodes = _episodes(str(where), found, sources)
    data = OfflineData.of(
        said.get("environment", environment.name), episodes, sources=sources,
        **{k: np.nan if said.get(k) is None else said[k] for k in ("low", "high")},
    )  # fmt: skip
    check_data(data, environment)
    return data


def _episodes(where: str, found: Any, sources: tuple[str, ...]) -> list[StoredEpisode]:
    if found.total_episodes == 0:
        raise InvalidProblem(message(where, "no episodes", "there must be at least one", "Collect some"))
    episodes, indices = [], list(found.episode_indices)
    notes = list(found.storage.get_episode_metadata(indices))
    for i, note in zip(indices, notes, strict=True):
        try:
            (raw,) = found.storage.get_episodes([i])
        except KeyError as error:
            raise InvalidProblem(
                message(f"{where}, episode {i}", f"no {_missing(error)}", f"an episode has {', '.join(KEYS)}",
                        "Write it with Minari's own collector")
            ) from error  # fmt: skip
        episodes.append(_episode(f"{where}, episode {i}", raw, note, sources))
    return episodes


def _episode(where: str, raw: dict[str, Any], note: dict[str, Any], sources: tuple[str, ...]) -> StoredEpisode:
    obs, action = (raw[key] for key in ("observations", "actions"))
    if isinstance(obs, dict | tuple) or isinstance(action, dict | tuple):
        raise InvalidProblem(
            message(where, "observations or actions in several parts", "vectors are supported", "Flatten them first")
        )
    reward, ends, cuts = (np.asarray(raw[key]) for key in ("rewards", "terminations", "truncations"))
    early = np.flatnonzero(ends[:-1] | cuts[:-1])
    if len(early) or not (ends[-1:] | cuts[-1:]).all():
        at = f"an end at step {early[0]} of {len(reward)}" if len(early) else "neither an end nor a cut at its last step"
        raise InvalidProblem(
            message(where, at, "exactly the last step is terminated or truncated",
                    "The episode was cut in the middle: drop it, or mark its last step as truncated")
        )  # fmt: skip
    noted, total = note.get("return"), float(reward.sum())
    if noted is not None and not abs(noted - total) <= ENOUGH * (1 + abs(total)):
        raise InvalidProblem(
            message(where, f"a noted return of {noted:g}", f"its rewards sum to {total:g}", "Rewards were changed or lost")
        )
    infos = raw.get("infos") or {}
    info = np.asarray(infos["of_step"])[: len(reward)] if "of_step" in infos else None
    source = sources.index(note["source"]) if note.get("source") in sources else 0
    obs, action = np.asarray(obs), np.asarray(action)
    return StoredEpisode(obs.reshape(len(obs), -1), action, reward, bool(ends[-1]), source, info)


def _spaces(environment: Environment) -> tuple[Any, Any]:
    spaces = require("gymnasium", "offline").spaces
    box = lambda b: spaces.Box(np.float32(b.low), np.float32(b.high), dtype=np.float32)  # noqa: E731
    space = environment.action
    return box(environment.observation), box(space) if isinstance(space, Box) else spaces.Discrete(space.n)


def check_installed() -> None:
    """Raise `MissingDependency` unless data sets can be written and read."""
    _minari()


def _minari() -> Any:
    require("h5py", "offline")
    return require("minari", "offline")


def _known(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _plain(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return lines[0][:200] if lines else f"metadata that Minari cannot read ({type(error).__name__})"


def _missing(error: KeyError) -> str:
    named = re.search(r"object '(\w+)'", str(error))
    return repr(named[1]) if named else _plain(error)
