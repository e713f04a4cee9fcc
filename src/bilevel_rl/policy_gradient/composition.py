"""Recipes as text, the way in: from names and parts to a recipe; `writing` is the way out.

grpo                                                            a recipe by name
grpo, loss=gspo                                                 the same with another part
credit=episode + 0.5*step_groups, weigh=my_rules.py:Mine(k=2)   by its parts, one's own among them
"""

from __future__ import annotations

import ast
import dataclasses
import re
from collections.abc import Callable
from typing import Any

from bilevel_rl.errors import InvalidConfig, did_you_mean, message
from bilevel_rl.policy_gradient.component import Slot
from bilevel_rl.policy_gradient.credit.sums import Sum
from bilevel_rl.policy_gradient.lookup import (
    FACTORIES,
    OPTIONS,
    OUTSIDE,
    attribute,
    component,
    has_slot,
)
from bilevel_rl.policy_gradient.recipe import Recipe
from bilevel_rl.policy_gradient.writing import ONE, SLOTS

OPTIONAL = ("step",)


def read(text: str, named: Callable[[str], Recipe]) -> Recipe:
    """The recipe that a text says; nothing is executed but constructors of parts.

    Args:
        text: see `recipes.compose`.
        named: the recipe of a name.
    """
    if text.strip().isidentifier():
        return named(text.strip())
    return _Reader(text, named).recipe()


class _Reader:
    """One text on its way to a recipe."""

    def __init__(self, text: str, named: Callable[[str], Recipe]) -> None:
        self.text, self.named = text, named
        self.outside: list[str] = []

    def recipe(self) -> Recipe:
        """The recipe that the text says."""
        call = self._call()
        if len(call.args) > 1 or (call.args and not isinstance(call.args[0], ast.Name)):
            raise self._error("a part without its slot")
        base = self.named(call.args[0].id) if call.args else Recipe()  # type: ignore[attr-defined]
        values: dict[str, Any] = {"name": self.text.strip()}
        for keyword in call.keywords:
            slot = keyword.arg or "**"
            if slot not in SLOTS:
                raise self._error(f"the slot {slot!r}. {did_you_mean(slot, SLOTS)}")
            if slot in values:
                raise self._error(
                    f"the slot {slot!r} twice, which is given once (several parts go in brackets)"
                )
            values[slot] = self._slot(slot, keyword.value)
        return dataclasses.replace(base, **values)

    def _call(self) -> ast.Call:
        # `return` is a component, and a word of Python's; names with a colon become words that Python reads
        readable = re.sub(r"\breturn\b(?!_)", "return_", self.text)
        readable = OUTSIDE.sub(self._keep, readable)
        try:
            call = ast.parse(f"recipe({readable})", mode="eval").body
        except SyntaxError as error:
            raise self._error(f"text that doesn't parse ({error.msg})") from error
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name) or call.func.id != "recipe":
            raise self._error("a part without its slot")
        return call

    def _keep(self, found: re.Match[str]) -> str:
        self.outside.append(found[0])
        return f"outside_{len(self.outside) - 1}_"

    def _name(self, word: str) -> str:
        kept = re.fullmatch(r"outside_(\d+)_", word)
        return self.outside[int(kept[1])] if kept else word.removesuffix("_")

    def _error(self, got: str) -> InvalidConfig:
        return InvalidConfig(
            message(
                f"recipe {self.text!r}", got, f"a name, or slot=part with {', '.join(SLOTS)}",
                "Write for instance: credit=empg(group_norm), loss=clipped(high=0.28), regular=0.01*sampled_kl",
            )
        )  # fmt: skip

    def _slot(self, slot: str, value: ast.expr) -> Any:
        if slot in OPTIONAL and isinstance(value, ast.Constant) and value.value is None:
            return None
        nodes = value.elts if isinstance(value, ast.List | ast.Tuple) else [value]
        if slot == "regular":
            return tuple(self._weighted(node, Slot.REGULAR) for node in nodes)
        if slot not in ONE:
            return tuple(self._part(node, SLOTS[slot]) for node in nodes)
        if len(nodes) != 1:
            raise self._error(f"{len(nodes)} parts in the slot {slot!r}, which takes one")
        return self._part(nodes[0], SLOTS[slot])

    def _weighted(self, node: ast.expr, slot: Slot) -> tuple[float, Any]:
        if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Mult):
            return float(self._literal(node.left)), self._part(node.right, slot)
        return 1.0, self._part(node, slot)

    def _part(self, node: ast.expr, slot: Slot) -> Any:
        if isinstance(node, ast.BinOp):
            return self._sum(node, slot)
        word, args, keywords = self._called(node)
        name = self._name(word)
        cls: Any = component(name, slot if ":" not in name else None)
        if cls.card.slot != slot:
            raise self._error(f"{name!r} in the slot '{slot}'; it belongs in '{cls.card.slot}'")
        return self._made(cls, name, args, keywords, slot)

    def _made(
        self, cls: Any, name: str, args: list[ast.expr], keywords: list[ast.keyword], slot: Slot
    ) -> Any:
        """The component with its options."""
        fields = {f.name for f in dataclasses.fields(cls)} if dataclasses.is_dataclass(cls) else set()
        options = {k.arg or "**": self._option(k.value) for k in keywords}
        if len(options) < len(keywords):
            raise self._error(f"an option of {name!r} twice")
        unknown = sorted(set(options) - fields)
        if unknown:
            raise self._error(f"the option {unknown[0]!r} of {name!r}. {did_you_mean(unknown[0], fields)}")
        if args:
            if len(args) > 1 or "inner" not in fields:
                wrong = "two parts" if "inner" in fields else f"{name!r} around something; it wraps nothing"
                raise self._error(wrong)
            options["inner"] = self._part(args[0], slot)
        return cls(**options)

    def _sum(self, node: ast.expr, slot: Slot) -> Any:
        """A weighted sum of credit rules."""
        if slot != Slot.CREDIT:
            raise self._error(
                f"a sum or product in the slot '{slot}'; only credit rules are added and scaled"
            )
        terms = [self._weighted(term, slot) for term in _terms(node)]
        return Sum(tuple(rule for _, rule in terms), tuple(weight for weight, _ in terms))

    def _called(self, node: ast.expr) -> tuple[str, list[ast.expr], list[ast.keyword]]:
        if isinstance(node, ast.Name):
            return node.id, [], []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return node.func.id, node.args, node.keywords
        raise self._error(f"{ast.unparse(node)!r} where a part is expected")

    def _option(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Tuple | ast.List):
            return tuple(self._option(one) for one in node.elts)
        if isinstance(node, ast.BinOp) and not any(isinstance(t, ast.Constant) for t in _terms(node)):
            return self._sum(node, Slot.CREDIT)
        if isinstance(node, ast.Name):
            return self._named_option(node)
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            return self._called_option(node, self._name(node.func.id))
        if (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, ast.USub)
            and isinstance(node.operand, ast.Name)
        ):
            return -self._option(node.operand)
        return self._literal(node)

    def _called_option(self, node: ast.Call, word: str) -> Any:
        """What a factory makes, or a component with its options."""
        if word not in FACTORIES:
            return self._part(node, component(word).card.slot)  # type: ignore[attr-defined]
        values = {k.arg or "**": self._option(k.value) for k in node.keywords}
        return FACTORIES[word](*[self._option(a) for a in node.args], **values)

    def _named_option(self, node: ast.Name) -> Any:
        """A function by its name, a component with its defaults, or what `module:name` holds."""
        word = self._name(node.id)
        if word in OPTIONS:
            return OPTIONS[word]
        if ":" in word:
            found = attribute(word)
            return found() if has_slot(found) else found
        try:
            return component(word)()
        except InvalidConfig as error:
            known = did_you_mean(word, [*OPTIONS, *FACTORIES])
            raise self._error(f"the value {word!r}. {known}") from error

    def _literal(self, node: ast.expr) -> Any:
        try:
            return ast.literal_eval(node)
        except ValueError as error:
            raise self._error(f"{ast.unparse(node)!r} where a number is expected") from error


def _terms(node: ast.expr) -> list[ast.expr]:
    """The summands of a sum, left to right."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return [*_terms(node.left), *_terms(node.right)]
    return [node]
