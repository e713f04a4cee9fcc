"""One process or several: what each rank computes, and the few sums and gathers that make them one run.

Every rank holds all the weights and computes its share of the rows. Per-token numbers are gathered so that each rank
sees the whole batch and takes the same decisions; gradients are summed. Collectives are called in the same order on
every rank, whatever the data, so no rank waits for another for ever.
"""

from __future__ import annotations

import dataclasses
import logging
import os
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from bilevel_rl.errors import InvalidConfig, message, require

log = logging.getLogger(__name__)
STARTED = "ACCELERATE_USE_CPU"  # set by `accelerate launch`, whatever it starts


class Processes:
    """This process among its peers, as `accelerate launch` (or nothing) started them.

    Args:
        device: where to compute; "auto": as accelerate says.
        sharded: whether the base is to be in pieces where there are several.

    Attributes:
        rank, count: number of this process, and of all.
        device: where this process computes.
        main: whether this process writes files and asks the judge.
        sharded: whether the base is in pieces, so that every process must call it equally often (`sharding`).
    """

    def __init__(self, device: str = "auto", sharded: bool = False) -> None:
        accelerate = require("accelerate", "llm")
        # without being told so, accelerate ignores its peers where there is no accelerator
        state = accelerate.PartialState(cpu=device == "cpu" or not torch.accelerator.is_available())
        asked = int(os.environ.get("WORLD_SIZE", "1"))
        if state.num_processes != asked:
            raise InvalidConfig(
                message("processes", f"{state.num_processes} processes where WORLD_SIZE is {asked}",
                        "every process must know of the others, or each trains a run of its own",
                        "Start them with torchrun or `accelerate launch`, and make the trainer first")
            )  # fmt: skip
        if asked == 1 and STARTED in os.environ and not torch.accelerator.is_available():
            log.warning(
                "`accelerate launch` has started one process: without a GPU it starts several with --multi_cpu or FSDP "
                "only. For several: torchrun --nproc-per-node N -m bilevel_rl llm train CONFIG"
            )
        self.rank, self.count = state.process_index, state.num_processes
        self.device = state.device if device == "auto" else torch.device(device)
        self.main = self.rank == 0
        self.sharded = sharded and self.count > 1

    def share(self, rows: int, where: str = "config.prompts_per_step") -> slice:
        """The rows of this process.

        Raises:
            InvalidConfig: rows that do not divide evenly.
        """
        if rows % self.count:
            raise InvalidConfig(
                message(where, rows, f"it must be divisible by the {self.count} processes",
                        f"Use a multiple of {self.count}")
            )  # fmt: skip
        each = rows // self.count
        return slice(self.rank * each, (self.rank + 1) * each)

    def part(self, rows: int) -> slice:
        """The rows of this process when they need not divide evenly; it may be empty."""
        return slice(self.rank * rows // self.count, (self.rank + 1) * rows // self.count)

    def gather(self, value: Tensor) -> Tensor:
        """Concatenate a tensor of equal shape along its first axis, in rank order."""
        if self.count == 1:
            return value
        parts = [torch.empty_like(value) for _ in range(self.count)]
        dist.all_gather(parts, value.contiguous())
        return torch.cat(parts)

    def add(self, tensors: Sequence[Tensor]) -> None:
        """Sum tensors over processes, in place, as one message for each precision."""
        if self.count == 1 or not tensors:
            return
        for dtype in dict.fromkeys(t.dtype for t in tensors):
            mine = [t for t in tensors if t.dtype == dtype]
            flat = torch.cat([t.reshape(-1) for t in mine])
            dist.all_reduce(flat)
            for tensor, piece in zip(mine, flat.split([t.numel() for t in mine]), strict=True):
                tensor.copy_(piece.view_as(tensor))

    def largest(self, value: int) -> int:
        """Maximum over processes."""
        if self.count == 1:
            return value
        tensor = torch.tensor(value, device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MAX)
        return int(tensor)

    def together(self, done: bool) -> bool:
        """Whether all processes are done, where they must go on together; else whether this one is."""
        if not self.sharded:
            return done
        tensor = torch.tensor(int(done), device=self.device)
        dist.all_reduce(tensor, op=dist.ReduceOp.MIN)
        return bool(tensor)

    def from_main(self, value: Tensor) -> Tensor:
        """The main process's tensor, on every process; shapes must agree."""
        if self.count > 1:
            dist.broadcast(value, 0)
        return value

    def agree(self, digests: Mapping[str, str], failure: Exception | None = None) -> None:
        """Compare what must be the same on every process, before the first number is computed.

        Every process calls it, one that failed too: it tells the others why, so that none waits for it.

        Args:
            digests: fingerprints by the name of what they are of (`levels.digests`).
            failure: why this process can't go on.

        Raises:
            InvalidConfig: on every process, naming what differs and where, or which process failed and why.
        """
        if self.count > 1:
            theirs: list[Any] = [None] * self.count
            mine = dict(digests), None if failure is None else f"{type(failure).__name__}: {failure}"
            dist.all_gather_object(theirs, mine)
            if failure is None:
                _same_everywhere(theirs)
        if failure is not None:
            raise failure

    def barrier(self) -> None:
        """Wait for all."""
        if self.count > 1:
            dist.barrier()


@dataclasses.dataclass(frozen=True)
class Share:
    """This process's rows of a batch, worked through in parts.

    Attributes:
        start, stop: the first row, and the row after the last.
        size: most rows of a part; 0: all at once.
    """

    start: int
    stop: int
    size: int = 0

    @property
    def own(self) -> int:
        """Number of this process's rows."""
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """Where they are in the batch."""
        return slice(self.start, self.stop)

    def parts(self) -> list[slice]:
        """The rows, counted from this process's first, in parts of at most `size`."""
        size = self.size or self.own
        return [slice(i, min(i + size, self.own)) for i in range(0, self.own, size)]

    def here(self, part: slice) -> slice:
        """Where a part is in the batch."""
        return slice(self.start + part.start, self.start + part.stop)

    @staticmethod
    def part(rollout: Any, part: slice) -> Any:
        """The part's rows of this process's batch; the batch itself when they are all."""
        return rollout if part.stop - part.start == rollout.size else rollout.rows(part)


def _same_everywhere(told: Sequence[tuple[Mapping[str, str], str | None]]) -> None:
    """Raise unless all processes told of the same things and none failed."""
    failed = [f"process {rank} ({why})" for rank, (_, why) in enumerate(told) if why is not None]
    if failed:
        raise InvalidConfig(
            message("processes", f"a failure of {', '.join(failed)}", "all processes must be able to start",
                    "Mend that one; this one is in order")
        )  # fmt: skip
    first = told[0][0]
    odd = {
        name: [rank for rank, (digests, _) in enumerate(told) if digests.get(name) != first.get(name)]
        for name in first
    }
    differ = [f"{name} of process {', '.join(map(str, ranks))}" for name, ranks in odd.items() if ranks]
    if differ:
        raise InvalidConfig(
            message("processes", f"other values than process 0's: {'; '.join(differ)}",
                    "all processes of a run have the same configuration, data and initial weights",
                    "Start all of them with the same command, files and versions")
        )  # fmt: skip
