"""`bilevel-rl llm chat RUN`: talk to a checkpoint."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bilevel_rl.commands.llm import screen, talk
from bilevel_rl.launch import options
from bilevel_rl.llm.data.wording import as_text

arg = tyro.conf.arg
LONGEST = 1_000_000  # tokens of a conversation: the model's own context is what counts


@dataclasses.dataclass(frozen=True)
class Settings:
    """Talk to the policy of a run: what is typed is answered, with all said before. /new begins again, /quit ends."""

    run: Annotated[tyro.conf.Positional[Path], arg(help="folder of the run")]
    checkpoint: Annotated[str, arg(help="last, best, or the iteration of one that is kept")] = "last"
    role: Annotated[Literal["policy", "reference"], arg(help="reference: the run's beginning")] = "policy"
    tokens: Annotated[int, arg(help="longest answer; 0: the run's own limit")] = 0
    seed: Annotated[int, arg(help="of the answers")] = 0


def main(argv: Sequence[str]) -> int:
    """`chat RUN [--checkpoint best]`."""
    from bilevel_rl.llm.export import restore

    given = options.parse("llm chat", Settings, argv)
    trainer = restore(given.run, checkpoint=given.checkpoint)
    console = screen.console()
    kind = "its chat template" if talk.has_template(trainer.tokenizer) else "no chat template: texts are continued"
    console.print(f"{given.role} at iteration {trainer.step}, {kind}; /new begins again, /quit ends", highlight=False)
    said: list[dict[str, str]] | str = [] if talk.has_template(trainer.tokenizer) else ""
    turn = 0
    while (text := _typed()) is not None:
        if text == "/new":
            said = [] if isinstance(said, list) else ""
            continue
        said = [*said, {"role": "user", "content": text}] if isinstance(said, list) else said + text
        answer = reply(trainer, said, given.role, given.tokens or trainer.config.max_new_tokens, given.seed + turn)
        console.print(answer, highlight=False, markup=False, soft_wrap=True)
        said = [*said, {"role": "assistant", "content": answer}] if isinstance(said, list) else said + answer
        turn += 1
    return 0


def reply(trainer: Any, said: Any, role: str, tokens: int, seed: int) -> str:
    """The policy's answer to a conversation, or the continuation of a text."""
    from bilevel_rl.llm.data.prompts import as_prompts
    from bilevel_rl.llm.forward import context
    from bilevel_rl.llm.sampling.sampler import uniforms

    with trainer.roles.model(role) as model:
        room = (context(model) or LONGEST) - tokens
        prompts = as_prompts([said], trainer.tokenizer, max(1, room), where="what was said", long_prompts="cut")
        rows = trainer.generator(model, prompts, uniforms(1, tokens, seed, 0x31))
    return as_text(rows.texts[0])


def _typed() -> str | None:
    """A line from the terminal, or None at its end."""
    while True:
        try:
            text = input("> ").strip()
        except EOFError:
            return None
        if text in ("/quit", "/exit"):
            return None
        if text:
            return text
