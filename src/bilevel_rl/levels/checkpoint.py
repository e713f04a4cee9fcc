"""A checkpoint: one safetensors file and one JSON, replaced whole; nothing is ever unpickled.

    state.json                  step, counters, configuration, RNG states, buffers; names the weights' file
    weights-STEP.safetensors    every trained tensor and the optimisers' state, by name
    state-STEP.json             the same as state.json, for each of the last checkpoints where several are kept

`state.json` is replaced last and atomically, so a kill at any moment leaves the old checkpoint or the new one.
"""

from __future__ import annotations

import contextlib
import os
import random
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bilevel_rl.errors import RunNotFound, StorageFailed, message
from bilevel_rl.levels.pieces import Pieces
from bilevel_rl.records import make_folder, read_json, write_json

FORMAT = 1


def save_checkpoint(
    folder: str | Path, step: int, tensors: Mapping[str, Tensor], state: Mapping[str, Any], keep: int = 1
) -> None:
    """Write a checkpoint; the one before it stays until this one is complete.

    Args:
        folder: of checkpoints.
        step, tensors, state: what is written.
        keep: how many stay, the newest ones.

    Raises:
        StorageFailed: the disk is full or read-only; the old checkpoint stays.
    """
    from safetensors.torch import save_file

    folder = make_folder(folder)
    name = f"weights-{step:08d}.safetensors"
    temporary = folder / f".{name}.{os.getpid()}.tmp"
    try:
        save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, temporary)
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, folder / name)
    except Exception as error:  # safetensors raises its own kinds
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageFailed(
            message(str(folder / name), f"{type(error).__name__} ({error})", "the folder must be writable, with space",
                    "Free space, then continue (resume=auto); the last checkpoint is still there")
        ) from error  # fmt: skip
    written = {"format": FORMAT, "step": step, "weights": name, **state}
    if keep > 1:
        write_json(folder / f"state-{step:08d}.json", written)
    write_json(folder / "state.json", written)
    # a run that went on from an earlier one has no later ones
    steps = [s for s in kept_steps(folder) if s <= step][-keep:] if keep > 1 else []
    names = {name, *(f"weights-{s:08d}.safetensors" for s in steps)}
    states = {f"state-{s:08d}.json" for s in steps}
    for old in (*folder.glob("weights-*.safetensors"), *folder.glob(".weights-*.tmp"), *folder.glob("state-*.json")):
        if old.name not in names | states:
            with contextlib.suppress(OSError):
                old.unlink()


def kept_steps(folder: str | Path) -> list[int]:
    """Iterations of the checkpoints that are kept besides the newest, in order."""
    return sorted(int(path.stem.removeprefix("state-")) for path in Path(folder).glob("state-*.json"))


def load_checkpoint(folder: str | Path, step: int | None = None) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Read a checkpoint.

    Args:
        folder: of checkpoints.
        step: which of the kept ones; None: the newest.

    Raises:
        RunNotFound: missing, incomplete, or of another format.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    folder = Path(folder)
    newest = folder / "state.json"
    path = newest if step is None else folder / f"state-{step:08d}.json"
    if step is not None and not path.exists():
        if newest.exists() and read_json(newest).get("step") == step:
            path = newest
        else:
            known = ", ".join(map(str, kept_steps(folder))) or "the newest alone"
            raise RunNotFound(
                message(str(folder), f"no checkpoint of iteration {step}", f"kept are {known}",
                        "Choose one of these, or keep more of them (keeping.keep_last)")
            )  # fmt: skip
    state = read_json(path)
    if not isinstance(state, dict) or state.get("format") != FORMAT:
        raise RunNotFound(
            message(str(folder / "state.json"), "another format", f"this version reads format {FORMAT}",
                    "Resume with the version that wrote it")
        )  # fmt: skip
    try:
        tensors = load_file(folder / state["weights"])
    except (OSError, SafetensorError) as error:
        raise RunNotFound(
            message(str(folder / state["weights"]), f"{type(error).__name__} ({error})",
                    "a checkpoint holds its weights as safetensors", "Start the run again")
        ) from error  # fmt: skip
    return tensors, state


def random_states() -> tuple[Any, Any, Any]:
    """The global random states of Python, NumPy and Torch: a user's judge or reward may draw on them.

    The trainer itself draws from counters (seed, stream, step) and keeps no state.
    """
    return random.getstate(), np.random.get_state(), torch.get_rng_state()  # noqa: NPY002


def set_random_states(states: tuple[Any, Any, Any]) -> None:
    """Put the states of `random_states` back."""
    random.setstate(states[0])
    np.random.set_state(states[1])  # noqa: NPY002
    torch.set_rng_state(states[2])


def rng_state() -> dict[str, Any]:
    """`random_states` as JSON values."""
    (version, words, gauss), (_, keys, position, has_gauss, cached), state = random_states()
    return {
        "python": [version, list(words), gauss],
        "numpy": [[int(k) for k in keys], int(position), int(has_gauss), float(cached)],
        "torch": state.tolist(),
    }


def set_rng_state(state: Mapping[str, Any]) -> None:
    """Put the states of `rng_state` back."""
    version, words, gauss = state["python"]
    keys, position, has_gauss, cached = state["numpy"]
    numpy = ("MT19937", np.array(keys, dtype=np.uint32), position, has_gauss, cached)
    set_random_states(
        ((version, tuple(words), gauss), numpy, torch.tensor(state["torch"], dtype=torch.uint8))
    )


def optimizer_tensors(name: str, optimizer: torch.optim.Optimizer, pieces: Pieces) -> Iterator[tuple[str, Tensor]]:
    """An optimiser's state by `optimizer/NAME/parameter number/key`; every process must go through all of it."""
    for i, parameter in enumerate(p for group in optimizer.param_groups for p in group["params"]):
        for key, value in optimizer.state.get(parameter, {}).items():
            tensor = torch.as_tensor(value)
            yield f"optimizer/{name}/{i}/{key}", tensor if key == "step" else pieces.whole(parameter, tensor)


def load_optimizer(
    name: str, optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor], pieces: Pieces
) -> None:
    """Put the state of `optimizer_tensors` back."""
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    optimizer.state.clear()
    prefix = f"optimizer/{name}/"
    for key, value in tensors.items():
        if key.startswith(prefix):
            number, entry = key[len(prefix) :].split("/")
            parameter = parameters[int(number)]
            own, device = (value, value.device) if entry == "step" else (pieces.piece(parameter, value), parameter.device)
            optimizer.state[parameter][entry] = own.clone().to(device)
