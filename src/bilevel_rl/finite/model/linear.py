r"""The linear systems of a policy, $(I - \gamma P_\pi) v = b$ and the transposed one, each with the residual it leaves.

$$\varrho = \frac{\|b - (I - \gamma P_\pi) v\|}{\|b\| + \|v\|}$$

in the largest entry, and for the transposed system in the sum of entries: in these norms the inverse is at most
$1/(1-\gamma)$, so that the relative error is at most $2\varrho/(1-\gamma)$. A solution with a residual above `REFUSED` is
no answer: it comes back as NaN inside compiled code, and as `Unsolved` where it was asked for outside. A b that is a small
difference of large numbers, as in Newton's last steps, is known to their rounding only, and a compiler may compute it twice,
to different bits: the caller says what it stands `beside`, and that much is no residual.

Small systems are factorised. Large ones are tried by BiCGSTAB on sparse products, whose memory is linear in S: it
needs a few dozen products where any state is soon reached from any other, and breaks down on corridors and trees. What
it leaves unsolved is factorised as a sparse matrix on the host (SuperLU), which is at its best exactly there.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import scipy.sparse
import scipy.sparse.linalg
from jax.scipy.sparse.linalg import bicgstab
from jaxtyping import Array, Float

from bilevel_rl.errors import Unsolved, message
from bilevel_rl.finite.model.mdp import FiniteMDP

REFUSED = 1e-11  # ours: a relative residual above this is no solution; factorisations leave 1e-16 to 1e-14, 64 bit
ROUNDING = 1e-14  # ours: of a difference, relative to what stands beside it: some forty roundings, in 64 bit
KRYLOV_TOLERANCE = 1e-13  # ours: relative residual at which an iterative solve stops
KRYLOV_RESTARTS = 50  # ours: each gains about six digits, so three are enough unless rounding stands in the way
KRYLOV_GAIN = 0.1  # ours: a restart that gains less than a digit is followed by no other
REFINEMENTS = 2  # ours: steps of iterative refinement after a sparse factorisation


class Solution(NamedTuple):
    """What a solve found.

    Attributes:
        v: [S] the solution; NaN where the residual is above `REFUSED`.
        residual: relative, as in the module's formula.
    """

    v: Float[Array, " S"]
    residual: Float[Array, ""]


def solved(
    mdp: FiniteMDP, pi: Float[Array, "S A"], b: Float[Array, " S"], transpose: bool, dense: bool, beside: Any = 0.0
) -> Solution:  # fmt: skip
    r"""Solve $(I - \gamma P_\pi) v = b$, or its transpose; differentiable in all of them.

    Args:
        dense: whether to factorise the S x S matrix, in O(S^3); otherwise memory is O(S A K).
        beside: [S] what b is a difference of; 0 where it is none.
    """
    b = b.astype(mdp.probabilities.dtype)  # rewards may come in 32 bits
    if dense:
        A = jnp.eye(mdp.n_states) - mdp.discount * mdp.under(pi)
        return dense_solution(A.T if transpose else A, b, transpose, beside)
    fixed = jax.tree.map(jax.lax.stop_gradient, (mdp, pi))
    beside = jax.lax.stop_gradient(jnp.asarray(beside, b.dtype))

    def apply(v):
        return _apply(mdp, pi, v, transpose)

    return Solution(*jax.lax.custom_linear_solve(
        apply, b, solve=lambda _, b: _sparse[transpose](*fixed, b, beside),
        transpose_solve=lambda _, b: _sparse[not transpose](*fixed, b, jnp.zeros(())), has_aux=True,
    ))  # fmt: skip


def refuse(where: str, residual: Any, allowed: float, fix: str) -> None:
    """Raise `Unsolved` for a residual above what is allowed, unless it is traced: then NaN says it.

    Raises:
        Unsolved: the residual is too large, or NaN.
    """
    if isinstance(residual, jax.core.Tracer) or bool(jnp.all(residual <= allowed)):
        return
    raise Unsolved(
        message(where, f"a relative residual of {float(jnp.max(residual)):.3g}", f"at most {allowed:.3g} is an answer", fix)
    )


def _relative(b: Array, v: Array, left: Array, transpose: bool, beside: Any = 0.0) -> Array:
    """The relative residual, of what is more than the rounding of b; 0 where all is zero."""
    size = (lambda u: jnp.sum(jnp.abs(u))) if transpose else (lambda u: jnp.max(jnp.abs(u)))
    whole = size(b) + size(v)
    more = jnp.maximum(size(left) - ROUNDING * size(beside), 0.0)
    return jnp.where(whole == 0, 0.0, more / jnp.where(whole == 0, 1.0, whole))


def _stated(
    apply: Callable[[Array], Array], b: Array, v: Array, transpose: bool, beside: Any = 0.0
) -> tuple[Array, Array]:  # fmt: skip
    """v, or NaN where it is no solution; and its residual."""
    residual = _relative(b, v, b - apply(v), transpose, beside)
    return jnp.where(residual <= REFUSED, v, jnp.nan), residual


# -- factorised ------------------------------------------------------------------------------------------------------


@jax.custom_batching.sequential_vmap
def _factor(A: Float[Array, "S S"]) -> tuple[Array, Array]:
    return jax.scipy.linalg.lu_factor(A)


@jax.custom_batching.sequential_vmap
def _back_substitute(lu: Array, pivots: Array, b: Float[Array, " S"]) -> Float[Array, " S"]:
    return jax.scipy.linalg.lu_solve((lu, pivots), b)


@jax.custom_batching.sequential_vmap
def _back_substitute_transposed(lu: Array, pivots: Array, b: Float[Array, " S"]) -> Float[Array, " S"]:
    return jax.scipy.linalg.lu_solve((lu, pivots), b, trans=1)


def dense_solution(
    A: Float[Array, "S S"], b: Float[Array, " S"], transpose: bool = False, beside: Any = 0.0
) -> Solution:  # fmt: skip
    """Solve A v = b by LU, one system of a batch after the other; `transpose` says which norms measure the residual.

    Not `jnp.linalg.solve`: its batched factorisation hands the batch to the thread pool that it itself runs on and
    waits. Two of them in one program then wait for each other for ever on a machine of two cores. One at a time is
    also what makes a batch agree bit for bit with its members.
    """
    lu, pivots = _factor(jax.lax.stop_gradient(A))
    beside = jax.lax.stop_gradient(beside)
    return Solution(*jax.lax.custom_linear_solve(
        lambda v: A @ v, b,
        solve=lambda apply, b: _stated(apply, b, _back_substitute(lu, pivots, b), transpose, beside),
        transpose_solve=lambda apply, b: _stated(apply, b, _back_substitute_transposed(lu, pivots, b), not transpose),
        has_aux=True,
    ))  # fmt: skip


# -- sparse ----------------------------------------------------------------------------------------------------------


def _apply(mdp: FiniteMDP, pi: Array, v: Array, transpose: bool) -> Array:
    moved = mdp.flow(v[:, None] * pi) if transpose else jnp.sum(pi * mdp.expect(v), axis=-1)
    return v - mdp.discount * moved


def _by_either(mdp: FiniteMDP, pi: Array, b: Array, beside: Array, transpose: bool) -> tuple[Array, Array]:
    """By Krylov iterations, and by a sparse factorisation where they did not arrive."""

    def apply(v):
        return _apply(mdp, pi, v, transpose)

    v = _krylov(apply, b)
    arrived = _relative(b, v, b - apply(v), transpose, beside) <= KRYLOV_TOLERANCE
    tables = (*mdp.arrows(pi), mdp.start, mdp.discount, b)
    shape = jax.ShapeDtypeStruct(b.shape, b.dtype)
    v = jax.lax.cond(
        arrived, lambda *_: v,
        lambda *tables: jax.pure_callback(partial(_direct, transpose=transpose), shape, *tables, vmap_method="sequential"),
        *tables,
    )  # fmt: skip
    return _stated(apply, b, v, transpose, beside)


# one system of a batch after the other: a condition then runs one of its branches, not both
_sparse = {
    transpose: jax.custom_batching.sequential_vmap(partial(_by_either, transpose=transpose)) for transpose in (False, True)
}


def _krylov(apply: Callable[[Array], Array], b: Float[Array, " S"]) -> Float[Array, " S"]:
    """BiCGSTAB, started again on what the last attempt left over, while that gains.

    BiCGSTAB alone breaks down on visitations from a uniform start: its shadow residual is then the constant vector, an
    eigenvector of the transposed system. And the residual it updates drifts away from the true one. So every attempt
    begins with two sweeps v <- b + gamma P v, which turn the residual, and counts only if the true residual fell.
    """

    def unfinished(carry):
        v, residual, gain, k = carry
        # what rounding leaves of a large v is no fault of the iterations
        goal = KRYLOV_TOLERANCE * jnp.linalg.norm(b) + 0.01 * KRYLOV_TOLERANCE * jnp.linalg.norm(v)
        return (jnp.linalg.norm(residual) > goal) & (gain < KRYLOV_GAIN) & (k < KRYLOV_RESTARTS)

    def refine(carry):
        v, residual, _, k = carry
        before = jnp.linalg.norm(residual)
        for _ in range(2):
            v = v + residual
            residual = b - apply(v)
        tried = v + bicgstab(apply, residual, tol=1e-6, maxiter=500)[0]
        left = b - apply(tried)
        better = jnp.linalg.norm(left) < jnp.linalg.norm(residual)  # not where the attempt broke down in NaN
        v, residual = jnp.where(better, tried, v), jnp.where(better, left, residual)
        return v, residual, jnp.linalg.norm(residual) / before, k + 1

    return jax.lax.while_loop(unfinished, refine, (jnp.zeros_like(b), b, jnp.zeros(()), 0))[0]


def _direct(rows, columns, entries, start, discount, b, *, transpose: bool) -> np.ndarray:
    r"""Sparse LU on the host; NaN where SuperLU finds no factors or no room for them.

    Restarts are a matrix of rank one, $q \rho^\top$ with q the probability that the episode ends, and dense where the
    start is spread out. They stay outside the factors: with $B = I - \gamma P$ without restarts, by Sherman and Morrison

    $$v = y + z\, \frac{\gamma \rho^\top y}{1 - \gamma \rho^\top z}, \qquad B y = b, \quad B z = q .$$
    """
    to, rows, rho, b = np.asarray(columns), np.asarray(rows), np.asarray(start), np.asarray(b)
    weight = np.asarray(discount) * np.asarray(entries)
    S = len(b)
    onward = (to < S) & (weight > 0)
    moved = scipy.sparse.coo_matrix((weight[onward], (rows[onward], to[onward])), shape=(S, S))
    ended = np.bincount(rows, np.where(to == S, weight, 0.0), minlength=S)
    B = (scipy.sparse.identity(S, format="csc") - moved).tocsc()
    try:
        factors = scipy.sparse.linalg.splu(B)
    except (RuntimeError, MemoryError):
        return np.full_like(b, np.nan)
    trans, matrix = ("T", B.T) if transpose else ("N", B)
    left, right = (rho, ended) if transpose else (ended, rho)

    def bare(c):
        return factors.solve(c, trans=trans)

    z = bare(left) if left.any() and right.any() else np.zeros(S)

    def whole(c):
        y = bare(c)
        return y + z * (right @ y) / (1 - right @ z)

    v = whole(b)
    for _ in range(REFINEMENTS):
        v = v + whole(b - (matrix @ v - left * (right @ v)))
    return v
