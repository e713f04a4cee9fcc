"""Modules that moved: their old names import for one release, with a warning that names the new ones."""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

MOVED = {
    "bilevel_rl.finite.mdp": "bilevel_rl.finite.model.mdp",
    "bilevel_rl.finite.planning": "bilevel_rl.finite.model.planning",
    "bilevel_rl.finite.sampling": "bilevel_rl.finite.model.sampling",
    "bilevel_rl.finite.horizon": "bilevel_rl.finite.model.horizon",
    "bilevel_rl.finite.contexts": "bilevel_rl.finite.model.contexts",
    "bilevel_rl.finite.leader": "bilevel_rl.finite.model.game",
    "bilevel_rl.finite.model.leader": "bilevel_rl.finite.model.game",
    "bilevel_rl.policy_gradient.solver": "bilevel_rl.policy_gradient.optimiser",
    "bilevel_rl.finite.linear_quadratic": "bilevel_rl.finite.model.linear_quadratic",
    "bilevel_rl.finite.small": "bilevel_rl.finite.model.small",
    "bilevel_rl.finite.followers": "bilevel_rl.finite.learn.followers",
    "bilevel_rl.finite.rollouts": "bilevel_rl.finite.learn.rollouts",
    "bilevel_rl.finite.replay": "bilevel_rl.finite.learn.replay",
    "bilevel_rl.finite.learnt_model": "bilevel_rl.finite.learn.learnt_model",
    "bilevel_rl.finite.starts": "bilevel_rl.loop.starts",
    "bilevel_rl.finite.learn.upper": "bilevel_rl.loop.leader",
    "bilevel_rl.finite.search_folder": "bilevel_rl.loop.search_folder",
    "bilevel_rl.llm.commands": "bilevel_rl.commands.llm",
    "bilevel_rl.llm.prompts": "bilevel_rl.llm.data.prompts",
    "bilevel_rl.llm.judging": "bilevel_rl.llm.judges.asking",
    "bilevel_rl.llm.policy": "bilevel_rl.llm.roles.policy",
    "bilevel_rl.llm.sharding": "bilevel_rl.llm.roles.sharding",
    "bilevel_rl.llm.weights": "bilevel_rl.llm.roles.weights",
    "bilevel_rl.llm.rollout": "bilevel_rl.llm.sampling",
    "bilevel_rl.llm.decoding": "bilevel_rl.llm.sampling.decoding",
    "bilevel_rl.llm.optimizers": "bilevel_rl.levels.coupled_adam",
    "bilevel_rl.llm.step_rules": "bilevel_rl.levels.step_rules",
    "bilevel_rl.llm.checkpoint": "bilevel_rl.levels.checkpoint",
    "bilevel_rl.llm.estimators": "bilevel_rl.levels.estimators",
    "bilevel_rl.llm.callbacks": "bilevel_rl.levels.callbacks",
    "bilevel_rl.llm.processes": "bilevel_rl.levels.processes",
    "bilevel_rl.llm.objectives": "bilevel_rl.levels.objectives",
    "bilevel_rl.llm.leader": "bilevel_rl.levels.leader",
    "bilevel_rl.llm.followers": "bilevel_rl.levels.followers",
    "bilevel_rl.llm.recipes": "bilevel_rl.levels.learner",
    "bilevel_rl.llm.measures": "bilevel_rl.levels.measures",
    "bilevel_rl.llm.run_folder": "bilevel_rl.levels.run_folder",
    "bilevel_rl.llm.differences": "bilevel_rl.levels.methods.finite_difference",
    "bilevel_rl.llm.reward": "bilevel_rl.llm.rewards",
}


class Forwarder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds an old name only after every ordinary finder has failed, and gives the module that has its contents now.

    Example:
        >>> import warnings
        >>> with warnings.catch_warnings(record=True) as said:
        ...     warnings.simplefilter("always")
        ...     import bilevel_rl.finite.horizon
        >>> print(said[-1].message)
        bilevel_rl.finite.horizon is bilevel_rl.finite.model.horizon now; the old name goes with the next release
    """

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in MOVED:
            return None
        return importlib.machinery.ModuleSpec(fullname, self)

    def create_module(self, spec):
        new = MOVED[spec.name]
        warnings.warn(
            f"{spec.name} is {new} now; the old name goes with the next release", DeprecationWarning, stacklevel=2
        )
        module = importlib.import_module(new)
        spec.loader_state = module.__spec__
        return module

    def exec_module(self, module):
        """Nothing to run: the module is loaded already; only the import system's mark on it is taken back."""
        module.__spec__ = module.__spec__.loader_state


def names_of(package: str, *modules: str) -> Callable[[str], Any]:
    """A `__getattr__` for a package that was one module: the names of its modules, with the same warning.

    Args:
        package: the package, e.g. "bilevel_rl.llm.judges".
        modules: those in it that have the names now, e.g. "builtin".
    """

    def forwarded(name: str) -> Any:
        for module in () if name.startswith("__") or name in modules else modules:
            found = importlib.import_module(f"{package}.{module}")
            if hasattr(found, name):
                warnings.warn(
                    f"{package}.{name} is {package}.{module}.{name} now; the old name goes with the next release",
                    DeprecationWarning,
                    stacklevel=2,
                )
                return getattr(found, name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    return forwarded


def renamed(module: str, **names: str) -> Callable[[str], Any]:
    """A `__getattr__` for a module whose classes got other names, with the same warning.

    Args:
        module: the module, e.g. "bilevel_rl.policy_gradient.optimiser".
        names: what each old name is called now.
    """
    return _forwarding(module, module, names)


def elsewhere(module: str, now: str, *names: str) -> Callable[[str], Any]:
    """A `__getattr__` for a module some of whose names stand in another one, with the same warning.

    Args:
        module: the module, e.g. "bilevel_rl.records".
        now: where its names are, e.g. "bilevel_rl.json_lines".
        names: those that went there.
    """
    return _forwarding(module, now, {name: name for name in names})


def _forwarding(module: str, now: str, names: Mapping[str, str]) -> Callable[[str], Any]:
    """A `__getattr__` of `module` for what stands in the module `now` under the name that `names` gives it."""

    def forwarded(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        warnings.warn(
            f"{module}.{name} is {now}.{names[name]} now; the old name goes with the next release",
            DeprecationWarning,
            stacklevel=2,
        )
        return getattr(importlib.import_module(now), names[name])

    return forwarded


def install() -> None:
    """Add the forwarder once, behind the ordinary finders."""
    if not any(isinstance(finder, Forwarder) for finder in sys.meta_path):
        sys.meta_path.append(Forwarder())
