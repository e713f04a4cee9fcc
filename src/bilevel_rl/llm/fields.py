"""What the task knows of a response, by name: a function of a rollout, or a column of the prompts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from bilevel_rl import names
from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.llm.data.prompts import Prompt
from bilevel_rl.llm.sampling.rollout import Rollout

Field = Callable[[Rollout], Tensor]


def fields_by_name(sources: Mapping[str, str], prompts: Sequence[Prompt]) -> dict[str, Field]:
    """Functions of a rollout for each field of `Batch`.

    Args:
        sources: field -> `MODULE:NAME` or `FILE.py:NAME` of a function (rollout -> [N] or [N, T]), or a column of numbers.
        prompts: with their columns.

    Raises:
        InvalidConfig: no such function or column, or a column with something else than numbers.

    Example:
        >>> found = fields_by_name({"duration": "seconds"}, [Prompt((3,), "", {"seconds": 2})])
        >>> list(found)
        ['duration']
    """
    return {field: _field(field, source, prompts) for field, source in sources.items()}


def _field(field: str, source: str, prompts: Sequence[Prompt]) -> Field:
    where = f"config.fields.{field}"
    if names.is_name(source):
        found = names.find(source, {}, where)
        if not callable(found):
            raise InvalidConfig(
                message(where, f"{source!r}, a {type(found).__name__}", "a field is a function of a rollout, [N] or [N, T]",
                        "Name a function")
            )  # fmt: skip
        return _checked(found, where)
    columns = sorted({name for p in prompts for name in p.columns})
    if source not in columns:
        raise InvalidConfig(
            message(where, repr(source), f"a function ({names.OWN}) or a column. {did_you_mean(source, columns)}",
                    "Name one of these")
        )  # fmt: skip
    odd = next((p.columns.get(source) for p in prompts if not isinstance(p.columns.get(source), int | float)), None)
    if any(not isinstance(p.columns.get(source), int | float) for p in prompts):
        raise InvalidConfig(
            message(where, f"{odd!r} in the column {source!r}", "a column that is a field holds a number in every row",
                    "Correct the data, or name a function")
        )  # fmt: skip

    def column(rows: Rollout) -> Tensor:
        return torch.tensor([p.columns[source] for p in rows.prompts], device=rows.ids.device)

    return column


def _checked(function: Callable[[Rollout], Any], where: str) -> Field:
    """The function, whose result is looked at: a wrong shape would otherwise be met far from here."""

    def field(rows: Rollout) -> Tensor:
        try:
            value = torch.as_tensor(function(rows))
        except Exception as error:  # whatever a user's function raises
            raise InvalidConfig(
                message(where, f"{type(error).__name__}: {error}", "a field is a function of a rollout, [N] or [N, T]",
                        "Correct the function")
            ) from error  # fmt: skip
        good = value.shape[:1] == (rows.size,) and (value.ndim == 1 or value.shape[1] == rows.horizon)
        if not good:
            raise InvalidConfig(
                message(where, f"shape {tuple(value.shape)}", f"it must be [N] or [N, T] = [{rows.size}, {rows.horizon}]",
                        "Correct the function")
            )  # fmt: skip
        return value.to(rows.ids.device)

    return field
