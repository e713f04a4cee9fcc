"""Where trained numbers are: whole on every process, or in pieces, of which each process holds and steps its own.

What is elementwise (Adam, the pull of theta^L towards theta) is done on pieces as on the whole. What is not asks here:

    gradients, deliver    how a gradient reaches a parameter
    add, norm, dot        sums over all numbers, each counted once
    whole, piece, shape   a tensor put together, and taken apart: checkpoints, draws
    gathered              a module that is called many times

`Pieces` is the plain case, in which nothing is divided; an engine that divides has its own.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from bilevel_rl.levels.processes import Processes


class Pieces:
    """Every process holds every number.

    Example:
        >>> pieces, p = Pieces(), torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> pieces.divided(p), pieces.norm(Processes("cpu"), [p], [2 * p.detach()])
        (False, 10.0)
    """

    # -- what an engine that divides answers --------------------------------------------------------------------

    def divided(self, p: Tensor) -> bool:
        """Whether this process holds a piece of a parameter; its gradients then arrive summed over processes."""
        return False

    def gradients(self, loss: Tensor, inputs: Sequence[Tensor], retain_graph: bool = False) -> list[Tensor | None]:
        """The gradient of a loss in parameters and other leaves; no `.grad` is touched."""
        return list(torch.autograd.grad(loss, list(inputs), retain_graph=retain_graph, allow_unused=True))

    def deliver(self, parameters: Sequence[Tensor]) -> None:
        """Called after the backward passes through parameters, before `.grad` is read."""

    def gathered(self, module: nn.Module) -> contextlib.AbstractContextManager[None]:
        """Inside, a module whose weights are in pieces keeps what it gathers: it will be called many times."""
        return contextlib.nullcontext()

    def shape(self, p: Tensor) -> torch.Size:
        """Of the whole parameter."""
        return p.shape

    def whole(self, p: Tensor, value: Tensor) -> Tensor:
        """A tensor that is laid out as a parameter is, put together; every process must call it."""
        return value

    def piece(self, p: Tensor, value: Tensor) -> Tensor:
        """Of a tensor of the whole parameter's shape what belongs to this process."""
        return value

    # -- sums over all numbers ----------------------------------------------------------------------------------

    def add(self, processes: Processes, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> None:
        """Sum gradients over processes, in place: those of pieces are sums already."""
        processes.add([t for p, t in zip(parameters, tensors, strict=True) if not self.divided(p)])

    def norm(self, processes: Processes, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> float:
        """The Euclidean norm of tensors, laid out as parameters are, as one vector."""
        if not any(self.divided(p) for p in parameters):
            return float(torch.linalg.vector_norm(torch.stack([torch.linalg.vector_norm(t) for t in tensors])))
        return float(self.dot(processes, parameters, tensors, tensors).sqrt())

    def squared(self, processes: Processes, parameters: Sequence[Tensor], tensors: Sequence[Tensor]) -> float:
        """The sum of the squares of tensors that are laid out as parameters are."""
        if not any(self.divided(p) for p in parameters):
            return sum(float(t.square().sum()) for t in tensors)
        return float(self.dot(processes, parameters, tensors, tensors))

    def dot(
        self, processes: Processes, parameters: Sequence[Tensor], a: Sequence[Tensor], b: Sequence[Tensor]
    ) -> Tensor:
        """Inner product of two vectors that are laid out as parameters are."""
        products = [(x * y).sum(dtype=torch.promote_types(x.dtype, torch.float32)) for x, y in zip(a, b, strict=True)]
        own = [self.divided(p) for p in parameters]
        if not any(own):
            return torch.stack(products).sum()
        pieces = torch.stack([v for v, divided in zip(products, own, strict=True) if divided]).sum()
        processes.add([pieces])
        return torch.stack([pieces, *(v for v, divided in zip(products, own, strict=True) if not divided)]).sum()
