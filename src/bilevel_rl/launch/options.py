"""Constructor arguments as command-line options: their types, defaults and help, to and from plain JSON values.

A solver's options are its dataclass fields; a problem's are its constructor's parameters. Help comes from the `Args:`
(or `Attributes:`) of the docstring. What a command line can't say (arrays, functions) is left to Python.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import inspect
import io
import re
import sys
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bilevel_rl.errors import BilevelError, InvalidConfig, did_you_mean, message
from bilevel_rl.launch.plain import unicode
from bilevel_rl.metrics import ALPHA, BETA, TAU, ZETA, W
from bilevel_rl.schedules import TimeScales, Unstated

SEQUENCES = {
    metric.key: f"{metric.meaning}: {metric.key}_k = initial / (k+1)^power"
    for metric in (ZETA, ALPHA, BETA, W, TAU)
}
PLAIN = (bool, int, float, str, Path)


@dataclasses.dataclass(frozen=True)
class Option:
    """One argument of a constructor.

    Attributes:
        name: as in Python.
        type: what the command line parses; for nested options, None.
        default: its default, or `inspect.Parameter.empty`.
        help: one sentence.
        nested: options of a dataclass value (the five sequences), else empty.
        rare: shown by `--help-all` only.
    """

    name: str
    type: Any
    default: Any
    help: str = ""
    nested: tuple[Option, ...] = ()
    rare: bool = False


# what is set most: a solver's other options are shown by `--help-all`
COMMON = ("chains", "step_size", "starts", "scales.zeta.initial", "scales.w.initial", "scales.tau.initial", "tau")


def marked(found: Sequence[Option], prefix: str = "") -> tuple[Option, ...]:
    """The options, with all but the common ones marked as rare."""
    return tuple(
        dataclasses.replace(
            o, nested=marked(o.nested, f"{prefix}{o.name}."), rare=not o.nested and prefix + o.name not in COMMON
        )
        for o in found
    )


def count(found: Sequence[Option], rare: bool) -> int:
    """How many options can be set, or how many of them are rare."""
    return sum(count(o.nested, rare) if o.nested else (o.rare or not rare) for o in found)


# -- what can be set ------------------------------------------------------------------------------------------------


def options_of(target: Any) -> tuple[Option, ...]:
    """The options of a class or factory; arguments that no command line can say are left out.

    Raises:
        InvalidConfig: an argument without a default that no command line can say.
    """
    helps = described(target)
    found = []
    for name, annotation, default in _arguments(target):
        if dataclasses.is_dataclass(default) and not isinstance(default, type):
            try:
                parts = options_of(type(default))
            except InvalidConfig:  # a part that no command line can make stays as it is
                continue
            nested = tuple(_replace_default(option, getattr(default, option.name)) for option in parts)
            if isinstance(default, TimeScales):
                nested = tuple(dataclasses.replace(o, help=SEQUENCES[o.name]) for o in nested)
            if nested:  # else there is nothing to say about it
                found.append(Option(name, None, default, helps.get(name, ""), nested))
        elif (kind := sayable(annotation, default)) is not None:
            found.append(Option(name, kind, default, helps.get(name, "")))
        elif default is inspect.Parameter.empty:
            raise InvalidConfig(
                message(
                    f"{_name(target)}.{name}",
                    f"an argument of type {annotation!r} without a default",
                    "the command line sets numbers, words, choices and tuples of them",
                    "Give it a default, or write a function without arguments that returns the object",
                )
            )
    return tuple(found)


def _replace_default(option: Option, value: Any) -> Option:
    if option.nested:
        inner = tuple(_replace_default(o, getattr(value, o.name)) for o in option.nested)
        return dataclasses.replace(option, default=value, nested=inner)
    return dataclasses.replace(option, default=value)


def _arguments(target: Any) -> list[tuple[str, Any, Any]]:
    """(name, annotation, default) of every argument that a call of `target` takes."""
    call = target.__init__ if isinstance(target, type) else target  # type: ignore[misc]
    parameters = list(inspect.signature(call).parameters.values())
    if isinstance(target, type):
        parameters = parameters[1:]  # self
    fields = {f.name: f for f in dataclasses.fields(target)} if dataclasses.is_dataclass(target) else {}
    rows = []
    for p in parameters:
        if p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD):
            continue
        default = p.default
        field = fields.get(p.name)
        if field is not None and field.default is not dataclasses.MISSING:
            default = field.default
        elif field is not None and field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        rows.append((p.name, _resolve(p.annotation, target), default))
    return rows


def _resolve(annotation: Any, target: Any) -> Any:
    if not isinstance(annotation, str):
        return annotation
    owners = target.__mro__ if isinstance(target, type) else (target,)
    for owner in owners:
        scope = vars(sys.modules[owner.__module__]) if owner.__module__ in sys.modules else {}
        with contextlib.suppress(Exception):  # names known only to type checkers
            return eval(annotation, dict(scope), dict(vars(typing)))
    return inspect.Parameter.empty


def sayable(annotation: Any, default: Any) -> Any | None:
    """The type to parse, or None where a command line can't say it."""
    if annotation in (Any, inspect.Parameter.empty):
        annotation = type(default)
        if annotation is tuple and default:
            annotation = tuple.__class_getitem__(tuple(type(value) for value in default))
    if annotation is int and isinstance(default, float):
        return float
    return annotation if _plain(annotation) else None


def _plain(annotation: Any) -> bool:
    if annotation in PLAIN or annotation in (type(None), None, ...):
        return True
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return True
    if origin in (tuple, typing.Union, types.UnionType):
        return bool(arguments) and all(_plain(argument) for argument in arguments)
    return False


def described(target: Any) -> dict[str, str]:
    """Argument -> sentence, from the `Args:` and `Attributes:` sections of the docstrings.

    Example:
        >>> def f(a, b):
        ...     '''Add.
        ...
        ...     Args:
        ...         a, b: the terms,
        ...             two of them.
        ...     '''
        >>> described(f)
        {'a': 'the terms, two of them.', 'b': 'the terms, two of them.'}
    """
    texts = [inspect.getdoc(target) or ""]
    if isinstance(target, type):
        # fields that a class has from its bases are described there
        texts = [inspect.cleandoc(vars(owner).get("__doc__") or "") for owner in reversed(target.__mro__)]
        texts.append(inspect.getdoc(target.__init__) or "")  # type: ignore[misc]
    found: dict[str, str] = {}
    for text in texts:
        for section in re.finditer(r"^(?:Args|Attributes):\n((?:[ ]{4}.*\n?|\n)*)", text, re.MULTILINE):
            for entry in re.split(r"\n(?=[ ]{4}\S)", section[1].rstrip()):
                names, _, meaning = entry.strip().partition(":")
                sentence = unicode(" ".join(meaning.split()))
                found |= {name.strip(" `*"): sentence for name in names.split(",") if sentence}
    return found


def _name(target: Any) -> str:
    return str(getattr(target, "name", None) or getattr(target, "__name__", type(target).__name__))


# -- parsing --------------------------------------------------------------------------------------------------------


def as_dataclass(label: str, options: Sequence[Option], describe: str = "") -> type:
    """A dataclass with these options as fields: what tyro turns into command-line options."""
    fields: list[tuple[str, Any, Any]] = []
    for option in options:
        if option.nested:
            inner = as_dataclass(f"{label}_{option.name}", option.nested, option.help)
            fields.append((option.name, inner, dataclasses.field(default_factory=inner)))
            continue
        # else tyro makes a stated number the class of its default, and it would count as not stated
        told: dict[str, Any] = {"constructor": float, "help_behavior_hint": f"(default: {float(option.default):g})"} \
            if isinstance(option.default, Unstated) else {}  # fmt: skip
        kind: Any = Annotated[option.type, tyro.conf.arg(help=option.help, **told)]
        if option.rare:
            kind = _suppressed[kind]
        if option.default is inspect.Parameter.empty:
            fields.append((option.name, kind, dataclasses.field()))
        else:
            default = _narrow(option.default)
            fields.append((option.name, kind, dataclasses.field(default=default)))
    made = dataclasses.make_dataclass(label, fields, frozen=True, kw_only=True)
    made.__doc__ = describe or label
    return made


def _narrow(value: Any) -> Any:
    return tuple(_narrow(v) for v in value) if isinstance(value, (tuple, list)) else value


def parse(label: str, kind: type, argv: Sequence[str], describe: str = "") -> Any:
    """Parse `argv` into the dataclass `kind`.

    Raises:
        InvalidConfig: an unknown option (with the nearest known one), or a value of the wrong type.
    """
    heard = io.StringIO()
    try:
        with contextlib.redirect_stderr(heard):
            made, unknown = _cli(
                kind,
                args=["--help" if word == "--help-all" else word for word in argv],
                prog=f"bilevel-rl {label}",
                description=describe or None,
                return_unknown_args=True,
                config=(tyro.conf.FlagCreatePairsOff,),
            )
    except SystemExit as stop:
        if not stop.code:
            raise
        text = re.sub(r"[╭╮╰╯│─]+|-{3,}", " ", heard.getvalue())
        text = " ".join(re.split("For full helptext|Argument helptext", text)[0].split())
        text = re.sub("^(Parsing|Value) error ", "", text).strip(" .")
        raise InvalidConfig(
            message(
                f"bilevel-rl {label}",
                f"options that can't be read ({text})",
                "each option has one type",
                f"`bilevel-rl {label} --help` lists them",
            )
        ) from None
    if unknown:
        word = next((w for w in unknown if w.startswith("-")), unknown[0])
        known = [f"--{name}".replace("_", "-") for name in flat_names(kind)]
        what = "option" if word.startswith("-") else "argument"
        near = nearest(word.split("=")[0].replace("_", "-"), known)
        hint = (
            f"the nearest known are {', '.join(near)}"
            if near
            else f"there are {len(known)} options, and it is none of them"
        )
        raise InvalidConfig(
            message(
                f"bilevel-rl {label}",
                f"the unknown {what} {word!r}",
                hint,
                f"`bilevel-rl {label} --help` lists them all",
            )
        )
    return made


_cli: Any = tyro.cli  # its overloads do not know classes made at run time
_suppressed: Any = tyro.conf.Suppress


def nearest(word: str, known: Sequence[str]) -> list[str]:
    """Up to three options that a word may have meant: those of which it names a part, then those spelt alike.

    Example:
        >>> nearest("--solver.tau", ["--tau", "--solver.starts", "--solver.scales.tau.initial"])
        ['--solver.scales.tau.initial', '--tau', '--solver.starts']
    """
    parts = word.lstrip("-").split(".")
    within = [name for name in known if parts[-1] in name.lstrip("-").split(".")]
    within.sort(key=lambda name: -len({*parts} & {*name.lstrip("-").split(".")}))
    alike = difflib.get_close_matches(word, known, n=3, cutoff=0.5)
    return list(dict.fromkeys([*within, *alike]))[:3]


def flat_names(kind: type, prefix: str = "") -> list[str]:
    """Dotted names of every option of a (nested) dataclass."""
    names = []
    for field in dataclasses.fields(kind):
        inner = field.type
        anonymous = typing.get_origin(inner) is Annotated
        inner = typing.get_args(inner)[0] if anonymous else inner
        if isinstance(inner, type) and dataclasses.is_dataclass(inner):
            names += flat_names(inner, prefix if anonymous else f"{prefix}{field.name}.")
        else:
            names.append(prefix + field.name)
    return names


# -- values ---------------------------------------------------------------------------------------------------------


def kept(
    argv: Sequence[str], but: Sequence[str] = (), of: Sequence[str] = ("problem", "solver")
) -> tuple[str, ...]:
    """The options of problem and solver in a command, as they were typed: what a command that is proposed must repeat.

    Args:
        but: dotted names that are given anew, `solver.leader.zeta.initial`.
        of: whose options.

    Example:
        >>> kept(["mine.py", "--problem.gamma", "0.6", "--samples", "900", "--solver.chains=8", "--problem.x0", "-1", "2"])
        ('--problem.gamma', '0.6', '--solver.chains=8', '--problem.x0', '-1', '2')
        >>> kept(["mine.py", "--solver.top-k", "3"], but=("solver.top_k",))
        ()
    """
    found: list[str] = []
    taken = False
    for word in argv:
        if word.startswith("--"):
            name = word[2:].partition("=")[0].replace("-", "_")
            taken = name.partition(".")[0] in of and "." in name and name not in but
        if taken:
            found.append(word)
    return tuple(found)


def values(parsed: Any) -> dict[str, Any]:
    """A parsed dataclass as nested plain values."""
    return {
        f.name: values(v) if dataclasses.is_dataclass(v := getattr(parsed, f.name)) else v
        for f in dataclasses.fields(parsed)
    }


def build(target: Any, given: Mapping[str, Any]) -> Any:
    """Call `target` with plain values (as JSON gives them): lists become tuples, mappings the dataclasses they stand for.

    Raises:
        InvalidConfig: a name that `target` does not take.
    """
    known = {option.name: option for option in options_of(target)}
    ready = {}
    for name, value in given.items():
        if name not in known and value == {}:
            continue  # run folders of older versions name parts that have no options
        if name not in known:
            raise InvalidConfig(
                message(
                    f"{_name(target)}.{name}",
                    "an unknown option",
                    did_you_mean(name, known),
                    "Correct its name",
                )
            )
        option = known[name]
        ready[name] = build(type(option.default), value) if option.nested else _narrow(value)
    try:
        return target(**ready)
    except BilevelError:
        raise
    except Exception as error:  # a constructor says no in its own way
        words = ", ".join(f"{name}={value!r}" for name, value in ready.items()) or "no options"
        raise InvalidConfig(
            message(f"{_name(target)}({words[:300]})", f"{type(error).__name__}: {error}"[:300],
                    "it must accept its options", "Give other values, or mend its constructor")
        ) from error  # fmt: skip


def set_dotted(target: Any, text: str, where: str = "compare --solvers") -> dict[str, Any]:
    """Read `field=value,field.inner=value` as nested plain values, each of its field's type.

    Args:
        where: the verb and option that said it, for errors.

    Example:
        >>> import dataclasses
        >>> @dataclasses.dataclass
        ... class C:
        ...     chains: int = 1
        >>> set_dotted(C, "chains=8")
        {'chains': 8}
    """
    if not text:
        return {}
    kind = as_dataclass("settings", options_of(target))
    argv, names = [], set()
    for part in re.split(r",(?=[A-Za-z_.]+=)", text):
        name, equals, value = (word.strip() for word in part.partition("="))
        names.add(name)
        if value in ("True", "False"):  # options that are on or off
            argv += [f"--{name}"] if value == "True" else []
        else:
            argv += [f"--{name}", *value.split()] if equals else [part]
    return _only(values(parse(f"{where} {_name(target)}", kind, argv)), names)


def _only(tree: dict[str, Any], names: set[str], prefix: str = "") -> dict[str, Any]:
    kept: dict[str, Any] = {}
    for key, value in tree.items():
        path = f"{prefix}{key}"
        if isinstance(value, dict):
            inner = _only(value, names, f"{path}.")
            if inner:
                # a nested dataclass is rebuilt whole: its other fields keep the defaults shown by the parser
                kept[key] = value
        elif path in names:
            kept[key] = value
    return kept
