"""The table of all components, written from their own declarations: `python -m bilevel_rl.policy_gradient.catalogue`."""

from __future__ import annotations

from bilevel_rl.policy_gradient.component import Card, Effect, Slot, Status
from bilevel_rl.policy_gradient.credit.sums import Sum
from bilevel_rl.policy_gradient.recipes import ALL, COMPONENTS

HEADER = """# Catalogue of policy-gradient components

Generated from the declarations in the code:

    python -m bilevel_rl.policy_gradient.catalogue > docs/catalogue.md

A recipe is `rollout -> select -> reward -> credit -> weigh -> loss + regular -> step`, each slot a function of
one record, `Batch`. Name a recipe (`grpo`) or its parts:

    credit=empg(adora(group_norm)), loss=clipped(high=0.28), regular=0.01*sampled_kl

**Effect** says what happens to the objective that the policy ends up maximising. Components that keep it may
serve as the lower level where the bi-level guarantees are claimed; those that rescale it per prompt keep each
prompt's optimum and change the mixture; those that change it are heuristics. Decide select and weigh once an
iteration and share them between both followers, or their difference is biased.

**Formula**: *SEEN*, read in the named source, in notes on it or in its released code; *INFERRED*, reconstructed
from the abstract or recalled, in the spirit of the paper until somebody compares; *classical*, textbook. Numbers
under **#** are those of the list of research papers that the library set out to cover. Its systems that act in
environments (4, 36, 39, 48, 54, 57, 70) are [followers of the control engine](control/systems.md); flows (27, 34, 53,
and 60 beside its loss here) have [a page](control/flows.md).
"""


def cards(slot: Slot) -> list[Card]:
    """The declarations of a slot's components, in the order of its `ALL`."""
    return [cls.card for cls in COMPONENTS if cls.card.slot == slot]  # type: ignore[attr-defined]


def row(card: Card) -> str:
    """One line of the table."""
    needs = ", ".join(f"`{name}`" for name in card.needs) or "nothing"
    number = "" if card.number is None else str(card.number)
    note = f" *{card.note}*" if card.note else ""
    cells = (
        f"`{card.name}`", number, f"{card.effect}.{note}", needs, card.scope, card.cost, card.source, card.status,
    )  # fmt: skip
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def render() -> str:
    """The page, in Markdown."""
    lines = [HEADER]
    every = [cls.card for cls in COMPONENTS]  # type: ignore[attr-defined]
    papers = {c.number for c in every if c.number is not None}
    inferred = sorted({c.number for c in every if c.number is not None and c.status is Status.INFERRED})
    keeps = sum(c.effect is Effect.KEEPS for c in every)
    lines.append(
        f"{len(every)} components of {len(papers)} papers and of common practice; {keeps} keep the objective. Papers with a "
        f"component that is INFERRED: {', '.join(map(str, inferred))}.\n"
    )
    return "\n".join([*lines, *_components(), *_recipes()]) + "\n"


def _components() -> list[str]:
    """A table a slot."""
    lines: list[str] = []
    for slot in Slot:
        lines.append(f"## {slot}\n")
        lines.append("| name | # | effect | needs | compares | cost | source | formula |")
        lines.append("|---|---|---|---|---|---|---|---|")
        lines += [row(card) for card in cards(slot)]
        lines.append("")
    return lines


def _recipes() -> list[str]:
    """The named recipes, slot by slot."""
    lines: list[str] = []
    lines.append("## Recipes by name\n")
    lines.append("| recipe | rollout | select | reward | credit | weigh | loss | regular |")
    lines.append("|---|---|---|---|---|---|---|---|")
    for recipe in ALL:
        slots = [
            " ".join(_label(c) for c in recipe.rollout),
            " ".join(_label(c) for c in recipe.select),
            " ".join(_label(c) for c in recipe.reward),
            _label(recipe.credit),
            " ".join(_label(c) for c in recipe.weigh),
            _label(recipe.loss),
            " ".join(f"{k:g} {_label(c)}" for k, c in recipe.regular),
        ]
        lines.append(f"| `{recipe.name}` | " + " | ".join(slots) + " |")
    return lines


def _label(component: object) -> str:
    if isinstance(component, Sum):
        return " + ".join(
            f"{w:g} {_label(c)}" for w, c in zip(component.weights, component.terms, strict=True)
        )
    inner = getattr(component, "inner", None)
    name = component.card.name  # type: ignore[attr-defined]
    return f"{name}({_label(inner)})" if inner is not None else name


if __name__ == "__main__":
    print(render(), end="")
