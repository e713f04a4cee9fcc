"""`bilevel-rl llm VERB ...`: one file a verb, imported when it is asked for."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

from bilevel_rl.commands import heads
from bilevel_rl.errors import MissingDependency, message

VERBS = {  # verb -> (module with `main(argv) -> int`, what it does)
    "happy-tweets": (
        "happy_tweets",
        "the paper's experiment, whole and offline: models, every method, a table, samples",
    ),
    "train": ("train", "a run of your own; any key of the file as --key value (--recipe grpo)"),
    "plan": ("plan", "what a run would take of each GPU: memory by its parts, time, communication, labels"),
    "resume": ("resume", "go on with a run that was stopped, to the same bits"),
    "sample": ("sample", "what the trained policy writes"),
    "chat": ("chat", "talk to a checkpoint, through its chat template"),
    "compare": ("compare", "two checkpoints on the same prompts, side by side: judge, gold score, KL, length"),
    "export": ("export", "policy, reward, tokenizer and model cards, for transformers, PEFT, TRL and vLLM"),
    "judge": ("judge", "label the pairs that a run has put in a queue folder"),
}
WORDS = {
    "train": "CONFIG.yaml", "plan": "CONFIG.yaml", "resume": "RUN", "sample": "RUN", "chat": "RUN", "compare": "A B",
    "export": "RUN", "judge": "QUEUE",
}  # fmt: skip


def main(argv: Sequence[str]) -> int:
    """Run one verb and return its exit code.

    Raises:
        InvalidConfig: an unknown verb or option.
    """
    asked = heads.verb("bilevel-rl llm", argv, VERBS, usage, "`bilevel-rl llm --help` explains each")
    if asked is None:
        return 0
    verb, rest = asked
    _quiet()
    return int(importlib.import_module(f"{__name__}.{VERBS[verb][0]}").main(rest))


def usage() -> str:
    """The text of `bilevel-rl llm --help`."""
    lines = [f"  {f'{verb} {WORDS.get(verb, str())}':<22}  {text}" for verb, (_, text) in VERBS.items()]
    return (
        "usage: bilevel-rl llm VERB ...\n\n" + "\n".join(lines) + "\n\n"
        "Each verb has its own --help; `bilevel-rl llm train --help` explains every key of a configuration."
    )


def _quiet() -> None:
    """Transformers' own progress bars and notes stay off: ours say what happens."""
    try:
        from transformers.utils import logging
    except ImportError as error:
        raise MissingDependency(
            message(
                "bilevel-rl llm",
                str(error),
                "language models need the extra 'llm'",
                "Run, in a clone of bilevel-rl: pip install '.[llm]'",
            )
        ) from error
    logging.set_verbosity_error()
    logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
