"""An environment of Gymnasium by its id; ids that are not registered and packages that are missing are named once, here."""

from __future__ import annotations

from typing import Any

import gymnasium

from bilevel_rl.errors import InvalidConfig, did_you_mean, message


def by_id(name: str, options: dict[str, Any], where: str) -> gymnasium.Env:
    """`gymnasium.make`, whose refusals say what to do.

    Args:
        name: an id that Gymnasium knows.
        options: for `gymnasium.make`.
        where: who asks, for the message.

    Raises:
        InvalidConfig: an id that is not registered, or one whose packages are not installed.

    Example:
        >>> by_id("CartPole-v1", {}, "here").action_space.n.item()
        2
    """
    try:
        return gymnasium.make(name, **options)
    except gymnasium.error.UnregisteredEnv as error:
        known = [key for key in gymnasium.registry if "/" not in key]
        raise InvalidConfig(
            message(where, f"the id {name!r}", did_you_mean(name, known)[:160],
                    "Register it, or pass a function that makes it, or an environment")
        ) from error  # fmt: skip
    except gymnasium.error.DependencyNotInstalled as error:
        raise InvalidConfig(
            message(where, f"{name}: {error}", "its packages must be installed",
                    "For MuJoCo, in a clone: pip install '.[control]'")
        ) from error  # fmt: skip
