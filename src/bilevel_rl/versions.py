"""Which versions numbers were computed with; two sorts of numbers under one name are refused, or accepted in so many words.

A run goes on, and a cell enters a table, under the versions that it was begun with. Where a user says otherwise
(`--accept-versions`, or the environment variable `BILEVEL_RL_ACCEPT_VERSIONS=1`), the results say so too.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import os
from collections.abc import Mapping, Sequence

from bilevel_rl import __version__
from bilevel_rl.errors import InvalidConfig, message

PACKAGES = (
    "numpy", "scipy", "jax", "jaxlib", "equinox", "torch", "transformers", "peft", "accelerate",
)  # fmt: skip
ACCEPT = "BILEVEL_RL_ACCEPT_VERSIONS"
OF_JAX = ("bilevel-rl", "jax", "jaxlib")  # what the numbers of the JAX engines depend on
OF_TORCH = ("bilevel-rl", "torch")


def here() -> dict[str, str]:
    """Of this process: the library and the packages that it computes with.

    Example:
        >>> here()["bilevel-rl"] == __version__
        True
    """
    found = {"bilevel-rl": __version__}
    for package in PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def accepted() -> bool:
    """Whether the user accepts other versions."""
    return os.environ.get(ACCEPT, "") not in ("", "0")


def accept(yes: bool) -> None:
    """Accept other versions from now on, in the processes that this one starts too."""
    if yes:
        os.environ[ACCEPT] = "1"


def differing(theirs: Mapping[str, str], names: Sequence[str], ours: Mapping[str, str] | None = None) -> dict[str, str]:
    """What differs, by package: `"theirs there, ours here"`. What either does not know is no difference.

    Example:
        >>> differing({"jax": "0.9.0", "torch": "2"}, OF_JAX, {"jax": "0.10.2", "torch": "3"})
        {'jax': '0.9.0 there, 0.10.2 here'}
    """
    ours = here() if ours is None else ours
    return {
        name: f"{theirs[name]} there, {ours[name]} here" for name in names
        if name in theirs and name in ours and theirs[name] != ours[name]
    }  # fmt: skip


def check(theirs: Mapping[str, str], names: Sequence[str], where: str) -> dict[str, str]:
    """Compare versions of elsewhere with this process's.

    Args:
        theirs: as `here` gave them there.
        names: which of them matter.
        where: for the error: a folder, a node.

    Returns:
        What differs and was accepted.

    Raises:
        InvalidConfig: they differ, and nobody has accepted that.
    """
    odd = differing(theirs, names)
    if odd and not accepted():
        raise InvalidConfig(
            message(where, ", ".join(f"{name} {said}" for name, said in odd.items()),
                    "numbers under one name come from one version",
                    "Install the same versions, or accept this with --accept-versions: the results will say so")
        )  # fmt: skip
    return odd
