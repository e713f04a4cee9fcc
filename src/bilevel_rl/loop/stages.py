"""The rounds of a search: how many starts go on, for how many iterations, and what comparing them may cost."""

from __future__ import annotations

import dataclasses
import math

from bilevel_rl.errors import InvalidConfig, message
from bilevel_rl.loop.settings import has_temperature
from bilevel_rl.loop.solver import Solver

COMPARING = 0.1  # ours: share of a sampled budget that is spent on comparing the starts
SETTLING = 0.0  # ours: share of that in which followers settle at a held x
CHUNKS = (10, 50)  # ours: pieces of a stage, after each of which a search can stop and go on


@dataclasses.dataclass(frozen=True)
class Stage:
    """One round, of which each start gets the same.

    Attributes:
        starts: how many.
        iterations: of each.
        heat: the temperature, relative to the target.
        settle: further iterations in which x is held, before starts are compared.
        measure: transitions from which the outcome is measured then; 0 where nothing is compared by samples.
        chunk: iterations after which a search can stop and go on; divides both numbers of iterations.
        model: whether it is measured by a model learnt from the transitions of all starts.
    """

    starts: int
    iterations: int
    heat: float
    settle: int = 0
    measure: int = 0
    chunk: int = 1
    model: bool = False

    @property
    def chunks(self) -> int:
        """Pieces of work, without the comparison."""
        return (self.iterations + self.settle) // self.chunk


@dataclasses.dataclass(frozen=True)
class Shape:
    """What a search is asked to be.

    Attributes:
        starts: N.
        samples, iterations: of all starts together; the one that the solver is budgeted by, and the other None.
        eta: a stage keeps one start in eta; 1 keeps all of them.
        stages: R; None for as many as lead to a single start (one when eta is 1).
        continuation: c; the first stage's temperature is c times the last one's.
        comparing: share of a stage's samples that is spent on comparing its starts.
        settling: share of that in which followers go on learning at a held x.
    """

    starts: int
    samples: int | None = None
    iterations: int | None = None
    eta: int = 4
    stages: int | None = None
    continuation: float = 1.0
    comparing: float = COMPARING
    settling: float = SETTLING

    def check(self, solver: Solver, each: int) -> None:
        """Raise `InvalidConfig` where a number is not allowed, or the budget is in the wrong unit.

        Args:
            each: transitions of an iteration; 0 for solvers that use the model.
        """
        budget, word = (self.samples, "samples") if each else (self.iterations, "iterations")
        other = self.iterations if each else self.samples
        can_heat = self.continuation == 1 or has_temperature(solver)
        for name, value, good, allowed in (
            ("starts", self.starts, self.starts >= 1, "at least one start is needed"),
            ("eta", self.eta, self.eta >= 1, "it must be at least 1"),
            ("stages", self.stages, self.stages is None or self.stages >= 1, "at least one stage is needed"),
            ("continuation", self.continuation, 1 <= self.continuation < math.inf,
             "it must be at least 1: temperatures fall towards the target"),
            ("continuation", self.continuation, can_heat,
             f"{solver.name} has no temperature (`tau`, or `scales`) to lower"),
            ("comparing", self.comparing, 0 < self.comparing < 1, "it must be a share between 0 and 1"),
            ("settling", self.settling, 0 <= self.settling < 1, "it must be a share of at least 0 and below 1"),
            (word, budget, budget is not None and other is None,
             f"{solver.name} is given a budget of {word}, and no other"),
        ):  # fmt: skip
            if not good:
                raise InvalidConfig(message(f"search.{name}", value, allowed, f"Set {name} accordingly"))

    @property
    def counts(self) -> list[int]:
        """How many starts each stage has."""
        stages = self.stages
        if stages is None:
            stages = 1 if self.eta == 1 else 1 + math.ceil(math.log(self.starts) / math.log(self.eta) - 1e-9)
        return [max(1, math.ceil(self.starts / self.eta**r)) for r in range(stages)]


def arrange(solver: Solver, each: int, shape: Shape, least: int | None = 2) -> tuple[Stage, ...]:
    """The stages, under one budget.

    Args:
        each: transitions of an iteration; 0 for solvers that use the model.
        least: the fewest transitions that a comparison of one start takes; None where comparing takes none.

    Raises:
        InvalidConfig: numbers that are not allowed, or a budget below one iteration a start and stage.
    """
    shape.check(solver, each)
    counts, budget = shape.counts, shape.samples if each else shape.iterations
    stages = len(counts)
    assert budget is not None
    compared, least = bool(each) and least is not None, least or 0
    # only where some are given up, or one of several is chosen in the end
    cuts = [n > m for n, m in zip(counts, [*counts[1:], 1], strict=True)]
    own = [int(budget / stages / n) for n in counts]
    spent = [max(int(shape.comparing * s), least) if compared and cut else 0 for s, cut in zip(own, cuts, strict=True)]
    lengths = [(s - c) // max(each, 1) for s, c in zip(own, spent, strict=True)]
    if min(lengths) < 1:
        word = "samples" if each else "iterations"
        one = max(math.ceil(each / (1 - shape.comparing)), each + least) + 1 if compared else max(each, 1)
        needed = stages * max(n * (one if cut or not compared else each) for n, cut in zip(counts, cuts, strict=True))
        raise InvalidConfig(
            message(f"search.{word}", budget, f"{shape.starts} starts in {stages} stages need at least {needed}",
                    f"Raise {word}, or lower starts")
        )  # fmt: skip
    made = []
    for r in range(stages):
        heat = shape.continuation ** (1 - r / (stages - 1)) if stages > 1 else 1.0
        pieces = _pieces(lengths[r])
        chunk = lengths[r] // pieces
        settle = int(min(shape.settling * spent[r], spent[r] - least) / each) // chunk * chunk if spent[r] else 0
        made.append(Stage(counts[r], pieces * chunk, heat, settle, spent[r] - settle * each, chunk))
    return tuple(made)


def _pieces(length: int) -> int:
    """Into how many equal chunks a stage is cut: as little as possible is left over."""
    return min(range(min(CHUNKS[0], length), min(CHUNKS[1], length) + 1), key=lambda n: (length % n, -n))
