"""`Card`: what every component says about itself, and the check that a batch has what it needs."""

from __future__ import annotations

import dataclasses
import enum
import re
from collections.abc import Collection, Iterator, Mapping
from typing import Any, ClassVar, Protocol

from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.policy_gradient.batch import PROVIDERS, Batch
from bilevel_rl.references import BIBTEX

NOBODY = "Nobody is known to provide it: say who in `card.fields`, and give it with fields={...} or Batch.make(extras=...)"


class Slot(enum.StrEnum):
    """The eight slots of a recipe."""

    ROLLOUT = "rollout"
    SELECT = "select"
    REWARD = "reward"
    CREDIT = "credit"
    WEIGH = "weigh"
    LOSS = "loss"
    REGULAR = "regular"
    STEP = "step"


class Effect(enum.StrEnum):
    """What a component does to the objective that the policy ends up maximising."""

    KEEPS = "keeps the objective"
    RESCALES = "rescales per prompt"
    CHANGES = "changes the objective"


class Scope(enum.StrEnum):
    """The largest unit whose members a component compares: its results on a batch of such units are those
    of each.
    """

    RESPONSE = "response"
    GROUP = "group"
    BATCH = "batch"


class Status(enum.StrEnum):
    """How well the formula is established: read in a named source, reconstructed, or a textbook result."""

    SEEN = "SEEN"
    INFERRED = "INFERRED"
    CLASSICAL = "classical"


@dataclasses.dataclass(frozen=True)
class Card:
    """The declaration of one component.

    Attributes:
        name: the name in recipes.
        slot: where it goes.
        effect: the class of section 4.1 of the catalogue.
        needs: fields of `Batch` without which it can't run.
        fields: those of them that the library does not know, each with the sentence of who provides it.
        source: the paper, by title and number where known.
        status: SEEN, INFERRED ("in the spirit of") or classical.
        number: number in the catalogue of papers; None for what everybody uses.
        cost: time beyond one pass over the batch.
        group: smallest number of responses a prompt for which it does anything.
        rows: smallest number of responses in a batch for which it has what it compares.
        scope: the unit within which it compares: a batch of several units gives what each unit gives alone.
        gives: fields that it adds to the batch for those after it.
        gradient: for losses and regularisers, the fields through which the gradient flows.
        by_prompt: for selections, whether whole prompts (or how many responses of each) are chosen, and never
            particular responses.
        uncounted: for weights, tokens of weight 0 leave the loss's means too, as if they were not there.
        note: what a reader should be warned of.
        cite: keys of `bilevel_rl.references`, where the bibliographic data are certain.
    """

    name: str
    slot: Slot
    effect: Effect
    needs: tuple[str, ...] = ()
    fields: Mapping[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""
    status: Status = Status.CLASSICAL
    number: int | None = None
    cost: str = "O(NT)"
    group: int = 1
    rows: int = 1
    scope: Scope = Scope.GROUP
    gives: tuple[str, ...] = ()
    gradient: tuple[str, ...] = ()
    by_prompt: bool = False
    uncounted: bool = False
    note: str = ""
    cite: tuple[str, ...] = ()

    def require(self, batch: Batch) -> None:
        """Raise `InvalidConfig` naming component, field and provider unless `batch` has what this needs."""
        for name in self.needs:
            if not batch.has(name):
                raise self.lacks(name)

    def take(self, batch: Batch, *names: str) -> tuple[Tensor, ...]:
        """`require`, then the named fields in order; floating [N, T, ...] ones are 0 outside the mask.

        Cleaning here means that whatever padding holds, even NaN, reaches neither a value nor a gradient.
        """
        self.require(batch)
        return tuple(batch.inside(name) for name in names)

    @property
    def references(self) -> tuple[str, ...]:
        """BibTeX of the sources: the entries of `cite`, and one for each arXiv number of `source` that they lack.

        Example:
            >>> card = Card("mine", Slot.CREDIT, Effect.KEEPS, source="A Title, arXiv 2501.00001")
            >>> print(card.references[0])
            @misc{arxiv250100001,
              title         = {A Title},
              eprint        = {2501.00001},
              archivePrefix = {arXiv}
            }
        """
        known = [BIBTEX[key] for key in self.cite]
        return (*known, *_from_source(self.source, known))

    def lacks(self, field: str) -> InvalidConfig:
        """The error for a missing field."""
        return InvalidConfig(
            message(
                f"{self.slot} '{self.name}'",
                f"a batch without '{field}'",
                f"it needs: {', '.join(self.needs)}",
                self.fields.get(field) or PROVIDERS.get(field, NOBODY),
            )
        )


def _from_source(source: str, known: list[str]) -> Iterator[str]:
    """BibTeX entries for the "Title, arXiv number" in a source that no known entry has."""
    for title, number in re.findall(r"([^;]*?),?\s*arXiv (\d{4}\.\d{4,5})", source):
        if not any(number in entry for entry in known):
            yield (
                f"@misc{{arxiv{number.replace('.', '')},\n  title         = {{{title.strip(' ;,')}}},\n"
                f"  eprint        = {{{number}}},\n  archivePrefix = {{arXiv}}\n}}"
            )


class Component(Protocol):
    """A frozen set of hyper-parameters with a `card`; calling it on a batch gives what its slot asks for."""

    card: ClassVar[Card]

    def __call__(self, batch: Batch) -> Any: ...


class TensorComponent(Protocol):
    """A component of a slot that yields one tensor."""

    card: ClassVar[Card]

    def __call__(self, batch: Batch) -> Tensor: ...


def parts(component: Any) -> Iterator[Any]:
    """A component and, for a decorator, everything inside it."""
    if not hasattr(component, "card"):
        return
    yield component
    if dataclasses.is_dataclass(component):
        for field in dataclasses.fields(component):
            inner = getattr(component, field.name)
            for one in inner if isinstance(inner, tuple) else (inner,):
                yield from parts(one)


def needs_of(component: Any) -> tuple[str, ...]:
    """Fields without which a component can't run: its card's, or its own `needs` where they depend on its options."""
    found: tuple[str, ...] = getattr(component, "needs", component.card.needs)
    return found


def check_before(component: Any, fields: Collection[str], group_size: int) -> None:
    """Raise `InvalidConfig` when `component` will not find what it needs in the batches to come."""
    for part in parts(component):
        card = part.card
        for name in needs_of(part):
            if name not in fields:
                raise card.lacks(name)
        smallest = getattr(part, "smallest_group", card.group)  # where it depends on the options
        if group_size < smallest:
            raise InvalidConfig(
                message(
                    f"{card.slot} '{card.name}'",
                    f"{group_size} response{'' if group_size == 1 else 's'} a prompt",
                    f"it compares responses to one prompt and needs at least {smallest}",
                    "Sample more responses a prompt, or choose a credit rule with a critic (gae)",
                )
            )
