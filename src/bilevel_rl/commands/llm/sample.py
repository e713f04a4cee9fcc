"""`bilevel-rl llm sample RUN`: what the trained policy writes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from bilevel_rl.commands.llm import screen, talk
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.launch import options
from bilevel_rl.llm.config import Config
from bilevel_rl.llm.data.rows import load_prompts
from bilevel_rl.llm.data.sources import load_rows

arg = tyro.conf.arg


@dataclasses.dataclass(frozen=True)
class Settings:
    """What the policy of a run writes at its last checkpoint."""

    run: Annotated[tyro.conf.Positional[Path], arg(help="folder of the run")]
    prompt: Annotated[
        tuple[str, ...], arg(help="prompts; by default the first ones that the run trained on")
    ] = ()
    count: Annotated[int, arg(help="how many of the run's own prompts")] = 8
    role: Annotated[Literal["policy", "policy_l", "reference"], arg(help="policy_l is the penalised one")] = (
        "policy"
    )
    seed: Annotated[int, arg(help="of the samples")] = 0
    checkpoint: Annotated[str, arg(help="last, best, or the iteration of one that is kept")] = "last"
    plain: Annotated[bool, arg(help="prompts as they are, not through the tokenizer's chat template")] = False


def main(argv: Sequence[str]) -> int:
    """`sample RUN [--prompt TEXT ...]`."""
    from bilevel_rl.llm.evaluation import evaluate
    from bilevel_rl.llm.export import restore

    given = options.parse("llm sample", Settings, argv)
    trainer = restore(given.run, checkpoint=given.checkpoint)
    config = trainer.config
    if given.role == "policy_l" and not config.uses_penalised:
        raise InvalidConfig(
            message("bilevel-rl llm sample --role", "'policy_l'", f"this run ({config.method}, estimator "
                    f"{config.estimator}) has no penalised policy", "Choose policy or reference")
        )  # fmt: skip
    typed = [talk.as_turn(text, trainer.tokenizer, given.plain) for text in given.prompt]
    prompts: list[Any] = typed or _prompts_of(given.run, config, given.count)
    figures, table = evaluate(
        trainer.roles, prompts, trainer.generator, trainer.tokenizer, role=given.role,
        max_new_tokens=config.max_new_tokens, seed=given.seed, longest=config.max_prompt_tokens,
    )  # fmt: skip
    screen.show_samples(table, f"{given.role}, iteration {trainer.step}")
    screen.console().print(f"KL {figures['kl']:.3g} nats, {figures['length']:.3g} tokens", highlight=False)
    return 0


def _prompts_of(folder: Path, config: Config, count: int) -> list[Any]:
    """Prompts that a run has used: from its sample table, else from where its configuration says."""
    rows = folder / "samples.jsonl"
    if rows.exists() and rows.stat().st_size:
        texts = [row["prompt"] for row in load_rows(rows)]
        unique = list({str(text): text for text in texts}.values())
        return unique[:count]
    if config.prompts:
        return load_prompts(config.prompts, duplicates="drop")[:count]
    raise InvalidConfig(
        message(
            str(folder),
            "no prompts",
            "a run without a sample table knows none",
            "Give some with --prompt TEXT",
        )
    )
