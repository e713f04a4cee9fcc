"""How a command with verbs of its own begins: which verb, then how many words before the options."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

from bilevel_rl.errors import InvalidConfig, did_you_mean, message

HELP = {"-h", "--help", "--help-all"}


def verb(
    command: str, argv: Sequence[str], verbs: Collection[str], usage: Callable[[], str], fix: str = "Name one of these"
) -> tuple[str, list[str]] | None:  # fmt: skip
    """The first word, which is a verb, and what follows; None where help was asked for, which is printed.

    Args:
        command: for the error, as it is typed.
        verbs: that there are.
        usage: the text of the help.
        fix: what an error advises.

    Raises:
        InvalidConfig: a word that is no verb.

    Example:
        >>> verb("bilevel-rl offline", ["show", "data", "arm"], ["check", "show"], str)
        ('show', ['data', 'arm'])
    """
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage())
        return None
    first, *rest = argv
    if first not in verbs:
        raise InvalidConfig(message(command, f"the verb {first!r}", did_you_mean(first, verbs), fix))
    return first, rest


def split_words(argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """The leading words, and everything from the first option on.

    Example:
        >>> split_words(["goal", "exact", "--runs", "3"])
        (['goal', 'exact'], ['--runs', '3'])
    """
    first = next((i for i, word in enumerate(argv) if word.startswith("-")), len(argv))
    return list(argv[:first]), list(argv[first:])


def words(
    command: str, argv: Sequence[str], wanted: Sequence[str], settings: type | None = None
) -> tuple[list[str], list[str]] | None:
    """As many leading words as are wanted, and the options after them; None where help was asked for, which is printed.

    Args:
        command: with its verb, `bilevel-rl flows train`.
        wanted: what each word stands for, `("TASK",)`.
        settings: dataclass of the options, for the help where words are missing: with all of them, the verb explains
            the options itself.

    Raises:
        InvalidConfig: fewer words, or more.

    Example:
        >>> words("bilevel-rl offline show", ["data", "arm", "--plot", "a.html"], ("DATA", "ENVIRONMENT"))
        (['data', 'arm'], ['--plot', 'a.html'])
    """
    given, rest = split_words(argv)
    usage = f"{command} {' '.join(wanted)} [options]"
    if set(rest) & HELP and len(given) < len(wanted):
        print(f"usage: {usage}")
        if settings is not None:
            from bilevel_rl.launch import options

            options.parse(command.removeprefix("bilevel-rl "), settings, ["--help"])
        return None
    if len(given) != len(wanted):
        raise InvalidConfig(
            message(command, f"the words {' '.join(given) or 'none'}", f"it takes {' '.join(wanted)}", usage)
        )
    return given, rest
