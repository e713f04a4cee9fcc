r"""Products with the lower level's curvature on one batch, and the linear system they make: no matrix is ever formed.

With a row's score $s_i = \nabla_\theta \log \pi(y_i)$,

    Fisher     F = E[sum_t J_t' (diag p_t - p_t p_t') J_t]          over the whole law of each action: J of its logits
    residual   R = E[A (s s' + grad^2 log pi)],   A = r_x - tau log(pi / ref) less its mean
    curvature  - grad^2 J_tau = tau F - R

At the lower optimum R vanishes where A is 0, that is where the policy can be the tilt of its reward. Derivatives along a
direction are central differences of forward passes; their transposes are backward passes. F is never negative; R can make
the sum so where theta is not at its optimum, and the solver stops there.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

import torch
from torch import Tensor

from bilevel_rl.levels.engine import POLICIES
from bilevel_rl.levels.followers import Scored
from bilevel_rl.levels.leader import Leader
from bilevel_rl.policy_gradient.credit.to_go import weighted_leave_one_out

T = TypeVar("T")
Vector = list[Tensor]  # one tensor a parameter


class LowerCurvature:
    """Products with theta's curvature on the rows of a follower.

    Args:
        leader: knows the engine, and which rows are this process's.
        f: theta, scored.
        tau: weight of the KL.
    """

    def __init__(self, leader: Leader, f: Scored, tau: float) -> None:
        self.engine, self.processes, self.share = leader.engine, leader.processes, leader.share
        self.f, self.tau = f, tau
        self.parameters = list(self.engine.parameters(POLICIES[0]).values())
        finest = min(torch.finfo(p.dtype).eps for p in self.parameters)
        values = [p.detach() for p in self.parameters]
        size = 1.0 + float(self.dot(values, values).sqrt())
        self.step = finest ** (1 / 3) * size  # where rounding and truncation of a central difference meet

    # -- products ---------------------------------------------------------------------------------------------------

    def scores_times(self, v: Vector) -> Tensor:
        """[N] s_i' v of all rows."""
        ahead, behind = self._both(v, self._logp)
        return (ahead - behind) / (2 * self._length(v))

    def scores_transposed(self, c: Tensor) -> Vector:
        """sum_i c_i s_i / N."""
        return self._pulled(lambda rows, here: (self._scored(rows).sum(1) * c[here]).sum() / self.f.rows.size)

    def fisher(self, v: Vector) -> Vector:
        """F v."""
        ahead, behind = self._both(v, self._logits)
        step, n = self._length(v), self.f.rows.size
        pulls: list[Tensor] = []
        for one, two, rows in zip(ahead, behind, self._parts(), strict=True):
            p = ((one + two) / 2).softmax(-1)
            along = torch.where(p > 0, (one - two) / (2 * step), 0.0)
            mask = self.share.part(self.f.mine, rows).mask
            pulls.append(p * (along - (p * along).sum(-1, keepdim=True)) * mask[..., None] / n)
        each = iter(pulls)

        def pulled(rows: slice, here: slice) -> Tensor:
            logits = self.engine.logits(POLICIES[0], self.share.part(self.f.mine, rows))
            pull = next(each)
            return (torch.where(pull != 0, logits, 0.0) * pull).sum()  # a logit of minus infinity has no pull

        return self._pulled(pulled)

    def residual(self, v: Vector) -> Vector:
        """R v, as the difference of the importance-weighted policy gradient at two points."""
        f = self.f
        mask = f.rows.mask
        a = f.reward - self.tau * ((f.logp - f.reference) * mask).sum(1)
        a = weighted_leave_one_out(a, f.rows.group).detach()  # any level of a start's own leaves the mean as it is
        old = (f.logp * mask).sum(1).detach()

        def gradient() -> Vector:
            return self._pulled(
                lambda rows, here: ((self._scored(rows).sum(1) - old[here]).exp() * a[here]).sum() / f.rows.size
            )

        ahead, behind = self._both(v, gradient)
        return [(one - two) / (2 * self._length(v)) for one, two in zip(ahead, behind, strict=True)]

    # -- passes -----------------------------------------------------------------------------------------------------

    def _parts(self) -> Sequence[slice]:
        return self.share.parts()

    def _scored(self, rows: slice) -> Tensor:
        part = self.share.part(self.f.mine, rows)
        return self.engine.score(POLICIES[0], part).logp * part.mask

    @torch.no_grad()
    def _logp(self) -> Tensor:
        return self.processes.gather(torch.cat([self._scored(rows).sum(1) for rows in self._parts()]))

    @torch.no_grad()
    def _logits(self) -> list[Tensor]:
        return [self.engine.logits(POLICIES[0], self.share.part(self.f.mine, rows)) for rows in self._parts()]

    def _pulled(self, part: Callable[[slice, slice], Tensor]) -> Vector:
        """The gradient in theta of a sum over parts, of all processes."""
        total = [torch.zeros_like(p) for p in self.parameters]
        for rows in self._parts():
            with self.engine.acting(POLICIES[0]), torch.enable_grad():
                found = self.engine.pieces.gradients(part(rows, self.share.here(rows)), self.parameters)
            for into, g in zip(total, found, strict=True):
                if g is not None:
                    into.add_(g)
        self.engine.pieces.add(self.processes, self.parameters, total)
        return total

    def dot(self, a: Vector, b: Vector) -> Tensor:
        """The inner product of two vectors."""
        return self.engine.pieces.dot(self.processes, self.parameters, a, b)

    def _length(self, v: Vector) -> float:
        return self.step / max(float(self.dot(v, v)) ** 0.5, 1e-300)

    def _both(self, v: Vector, function: Callable[[], T]) -> tuple[T, T]:
        """A function at theta + step v / |v| and at theta - step v / |v|."""
        length = self._length(v)
        with self._moved(v, length):
            ahead = function()
        with self._moved(v, -length):
            behind = function()
        return ahead, behind

    @contextlib.contextmanager
    def _moved(self, v: Vector, by: float) -> Iterator[None]:
        # as data: a graph that scoring has kept is still to be used, at the point to which this returns
        data = [p.data for p in self.parameters]
        before = [x.clone() for x in data]
        torch._foreach_add_(data, v, alpha=by)
        try:
            yield
        finally:
            torch._foreach_copy_(data, before)


def dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """The inner product of two vectors."""
    return torch.stack([(x * y).sum() for x, y in zip(a, b, strict=True)]).sum()


def conjugate_gradients(
    product: Callable[[Vector], Vector], g: Vector, steps: int, damping: float, dot: Callable[[Vector, Vector], Tensor] = dot
) -> Vector:
    r"""$(B + \lambda I)^{-1} g$ by a few steps of conjugate gradients, $\lambda$ = `damping` times the curvature along g.

    Stops where the curvature along a direction is not positive, with what has been found so far.

    Args:
        product: v to B v.
        g: right-hand side.
        steps: products at most.
        damping: share; few steps regularise too.
        dot: inner product of two vectors.

    Example:
        >>> half = conjugate_gradients(lambda v: [2 * v[0]], [torch.ones(3)], steps=2, damping=0.0)
        >>> half[0].tolist()
        [0.5, 0.5, 0.5]

    References:
        Martens, "Deep learning via Hessian-free optimization", ICML 2010.
    """
    z = [torch.zeros_like(x) for x in g]
    r, d, left = g, g, dot(g, g)
    if not float(left):
        return z
    scale = 0.0
    for step in range(steps):
        bd = product(d)
        along = dot(d, bd)
        if step == 0:
            scale = damping * abs(float(along / left))
        bd = [b + scale * x for b, x in zip(bd, d, strict=True)]
        along = along + scale * dot(d, d)
        if float(along) <= 0:
            break
        length = left / along
        z = [x + length * y for x, y in zip(z, d, strict=True)]
        r = [x - length * y for x, y in zip(r, bd, strict=True)]
        new = dot(r, r)
        if float(new) <= 1e-16 * float(dot(g, g)):
            break
        d, left = [x + (new / left) * y for x, y in zip(r, d, strict=True)], new
    return z
