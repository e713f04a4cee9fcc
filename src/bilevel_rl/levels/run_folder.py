"""The folder of a run: header, status, metrics, sample tables, and what a checkpoint of the trainer holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bilevel_rl import versions
from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.json_lines import append_line, whole_lines
from bilevel_rl.levels import checkpoint
from bilevel_rl.records import (
    Run,
    goes_on,
    make_folder,
    provenance,
    read_header,
    write_bytes,
    write_json,
)

# keys that a resumed run may change
FREE = {
    "steps", "out", "save_every", "samples_every", "device", "resume", "keep_last", "keep_best", "loggers", "eval_prompts",
    "eval_every", "eval_count", "eval_gold", "eval_metric", "patience", "generator", "generator_folder",
}  # fmt: skip


class RunFolder:
    """Writes one run's files; every call does nothing where nothing is written.

    Args:
        config: of the run: `out` names the folder, and `asdict`, `method`, `seed`, `steps`, `samples_every`.
        problem: label of the task.
        main: whether this process writes.
    """

    def __init__(self, config: Any, problem: str, main: bool) -> None:
        self.config, self.problem = config, problem
        self.path = Path(config.out) if config.out and main else None
        self.mine = False  # whether what is in the folder is this run's own
        self.other_versions: dict[str, str] = {}  # what differs from those that the run was begun with, and was accepted

    def begin(self, step: int, digests: Mapping[str, str]) -> None:
        """Make the folder with its header; a new run empties what an earlier one left.

        Args:
            step: iterations done.
            digests: fingerprints of what the run begins with.
        """
        if self.path is None:
            return
        make_folder(self.path)
        if step == 0 and not self.mine:
            for name in ("metrics.jsonl", "samples.jsonl"):
                write_bytes(self.path / name, b"")
            # an earlier run's checkpoint does not belong to these metrics
            for place in ("checkpoint", "best"):
                for old in (self.path / place).glob("state*.json"):
                    old.unlink(missing_ok=True)
        self.mine = True
        self.status("running", "", step)
        begun = step and (self.path / "run.json").exists()
        if begun and self.other_versions:
            goes_on(self.path, "run.json", versions.OF_TORCH)
        if not begun:
            run = Run(
                kind="llm", name=self.config.method, problem=self.problem, config=self.config.asdict(), trace={},
                status={}, provenance=provenance(), seed=self.config.seed,
            )  # fmt: skip
            write_json(self.path / "run.json", run.header())
            write_json(self.path / "digests.json", dict(digests))

    def refusal(self, step: int) -> InvalidConfig | None:
        """An error when the folder holds a run that a new one would wipe."""
        then = getattr(self.config, "resume", "never")
        if self.path is None or step or self.mine or then == "replace":
            return None
        if then == "auto" and (self.path / "run.json").exists():
            try:
                _same_config(self.config.asdict(), read_header(self.path)["config"], str(self.path))
            except InvalidConfig as error:
                return error
        metrics = self.path / "metrics.jsonl"
        begun = then == "never" and metrics.exists() and metrics.stat().st_size
        if not has_checkpoint(self.path) and not begun:
            return None
        return InvalidConfig(
            message(str(self.path), "a folder that holds a run", "a new run would wipe it",
                    "Continue it (resume=auto), choose another out, or set resume=replace")
        )  # fmt: skip

    def status(self, state: str, text: str, step: int) -> None:
        """How the run stands: running, stopped, failed or finished."""
        if self.path is not None:
            write_json(self.path / "status.json", {"state": state, "message": text, "iteration": step})

    def line(self, line: Mapping[str, float]) -> None:
        """One more line of metrics."""
        if self.path is not None:
            append_line(self.path / "metrics.jsonl", line, sealed=True)

    def wants_samples(self, step: int) -> bool:
        """Whether a sample table is due."""
        every = self.config.samples_every
        due = bool(every) and (step % every == 0 or step == 1 or step == self.config.steps)
        return self.path is not None and due

    def samples(self, step: int, rows: Sequence[Mapping[str, Any]]) -> None:
        """One more sample table."""
        if self.path is not None:
            for row in rows:
                append_line(self.path / "samples.jsonl", {"iteration": step, **row}, sealed=True)


def has_checkpoint(folder: str | Path) -> bool:
    """Whether a run in the folder can be continued."""
    return (Path(folder) / "checkpoint" / "state.json").exists()


def save(trainer: Any, folder: str | Path) -> None:
    """Write everything that a trainer's next iteration depends on.

    Every process calls it, for the tensors of which each has a piece; the main one writes.
    """
    pieces, write = trainer.engine.pieces, trainer.processes.main
    # one at a time, so that only the process that writes holds them all
    tensors = {key: value for key, value in trainer.engine.whole_weights() if write}
    for name, optimizer in trainer.optimizers.items():
        tensors |= {key: v for key, v in checkpoint.optimizer_tensors(name, optimizer, pieces) if write}
    if not write:
        return
    for part, holder in _holders(trainer).items():
        tensors |= {f"{part}/{key}": value for key, value in holder.tensors().items()}
    leader = trainer.leader
    state = {
        "config": trainer.config.asdict(), "labels": leader.count, "tokens": trainer.engine.samples,
        "replay": leader.labels.dump(leader.replay),
        "rng": checkpoint.rng_state(), "controller": trainer.controller.state(),
        "digests": trainer.digests, "recipe": trainer.recipe.describe(), "versions": versions.here(),
    }  # fmt: skip
    checkpoint.save_checkpoint(folder, trainer.step, tensors, state, getattr(trainer.config, "keep_last", 1))


def load(trainer: Any, folder: str | Path, goes_on: bool = True, step: int | None = None) -> None:
    """Put back what `save` wrote.

    Args:
        trainer: made with the run's configuration.
        folder: of the checkpoint.
        goes_on: whether it will train further, which takes the data that the run began with.
        step: which of the kept ones; None: the newest.

    Raises:
        RunNotFound: no checkpoint there.
        InvalidConfig: a checkpoint of another configuration or model.
    """
    tensors, state = checkpoint.load_checkpoint(folder, step)
    _same_config(trainer.config.asdict(), trainer.known_config(state["config"]))
    _same_recipe(trainer.recipe, state.get("recipe", {}))
    if goes_on:
        trainer.folder.other_versions = versions.check(state.get("versions", {}), versions.OF_TORCH, str(folder))
    ours = ("optimizer/", "recipe/", "step_rule/")
    trainer.engine.load({key: value for key, value in tensors.items() if not key.startswith(ours)})
    _same_start(trainer.digests, state.get("digests", {}), ("data", "frozen weights") if goes_on else ("frozen weights",))
    for part, holder in _holders(trainer).items():
        own = {
            key.removeprefix(f"{part}/"): value
            for key, value in tensors.items()
            if key.startswith(f"{part}/")
        }
        holder.load(own)
    for name, optimizer in trainer.optimizers.items():
        checkpoint.load_optimizer(name, optimizer, tensors, trainer.engine.pieces)
    leader = trainer.leader
    if "controller" in state:
        trainer.controller.restore(state["controller"])
    trainer.step, leader.count, trainer.engine.samples = state["step"], state["labels"], state["tokens"]
    leader.replay = leader.labels.load(state["replay"])
    checkpoint.set_rng_state(state["rng"])
    trainer.folder.mine = goes_on


def _holders(trainer: Any) -> dict[str, Any]:
    """What remembers more than weights: a recipe's components, and its step rule."""
    found = {"recipe": trainer.learner, "step_rule": trainer.optimizers["policies"]}
    return {name: holder for name, holder in found.items() if hasattr(holder, "tensors")}


def _same_config(mine: Mapping[str, Any], theirs: Mapping[str, Any], where: str = "resume") -> None:
    odd = sorted(k for k in mine.keys() | theirs.keys() if k not in FREE and mine.get(k) != theirs.get(k))
    if odd:
        raise InvalidConfig(
            message(where, f"{odd[0]}={mine.get(odd[0])!r} where the checkpoint has {theirs.get(odd[0])!r}"
                    + (f" ({len(odd) - 1} more differ)" if odd[1:] else ""),
                    f"only {', '.join(sorted(FREE))} may change", "Resume with the run's own configuration")
        )  # fmt: skip


def _same_recipe(mine: Any, theirs: Mapping[str, str]) -> None:
    """Every field of every component, also those that a configuration leaves to their defaults."""
    own, wanted = mine.describe()["composition"], theirs.get("composition", "")
    if theirs and own != wanted:
        raise InvalidConfig(
            message("resume", f"the recipe {own!r} where the checkpoint has {wanted!r}",
                    "a resumed run is the same algorithm", "Give the recipe that the run began with")
        )  # fmt: skip


def _same_start(mine: Mapping[str, str], theirs: Mapping[str, str], names: Sequence[str]) -> None:
    """A run goes on from where it began: its frozen weights and its data are not in the checkpoint."""
    odd = [name for name in names if name in theirs and mine[name] != theirs[name]]
    if odd:
        raise InvalidConfig(
            message("resume", f"other {' and '.join(odd)} than the run began with",
                    "a resumed run has its own models, prompts and preferences", "Give what the run began with")
        )  # fmt: skip


def cut(path: Path, step: int, write: bool) -> list[dict[str, Any]]:
    """Lines up to iteration `step`; the file is cut to them.

    Raises:
        RunNotFound: a line is damaged.
    """
    lines = [(text, line) for text, line in (whole_lines(path) if path.exists() else []) if line["iteration"] <= step]
    if write:
        write_bytes(path, "".join(text + "\n" for text, _ in lines).encode())
    return [line for _, line in lines]
