"""Methods: one file each, an object with the phases of an iteration in which methods differ (see `base`)."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.levels.methods.base import Method
from bilevel_rl.levels.methods.finite_difference import FiniteDifference
from bilevel_rl.levels.methods.fisher import Fisher
from bilevel_rl.levels.methods.fixed_reward import FixedReward
from bilevel_rl.levels.methods.nested import Nested
from bilevel_rl.levels.methods.paired import Paired
from bilevel_rl.levels.methods.partial_sgd import PartialSGD
from bilevel_rl.levels.methods.plain import Plain
from bilevel_rl.levels.methods.shared import Shared
from bilevel_rl.levels.methods.tilted import Tilted
from bilevel_rl.levels.settings import Settings

ESTIMATORS: Mapping[str, Callable[[Settings], Method]] = {
    "tilted": Tilted, "shared": Shared, "paired": Paired, "fisher": Fisher,
}  # fmt: skip


def _bilevel(settings: Settings) -> Method:
    return ESTIMATORS[settings.estimator](settings)


ALL: Mapping[str, Callable[[Settings], Method]] = {
    "bilevel": _bilevel,
    "nested": lambda settings: Nested(settings, inner=_bilevel(settings)),
    "partial_sgd": PartialSGD,
    "fixed_reward": FixedReward,
    "finite_difference": FiniteDifference,
    "plain": Plain,
}


def method_of(settings: Settings) -> Method:
    """The method that the settings name: the one place where the names are read.

    Raises:
        InvalidConfig: there is none.

    Example:
        >>> type(method_of(Settings(method="bilevel", estimator="paired"))).__name__
        'Paired'
    """
    for key, known in (("method", ALL), ("estimator", ESTIMATORS)):
        if getattr(settings, key) not in known:
            raise InvalidConfig(
                message(f"config.{key}", repr(getattr(settings, key)), did_you_mean(getattr(settings, key), known),
                        "Choose one of these")
            )  # fmt: skip
    return ALL[settings.method](settings)


__all__ = [
    "ALL", "ESTIMATORS", "FiniteDifference", "Fisher", "FixedReward", "Method", "Nested", "Paired", "PartialSGD", "Plain",
    "Settings", "Shared", "Tilted", "method_of",
]  # fmt: skip
