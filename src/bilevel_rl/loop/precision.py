"""64-bit arithmetic for what this library computes, and for nothing else of the process.

Fixed points and hyper-gradients are graded to 1e-8 and better, which takes 64 bits; a caller's own JAX may be set to 32, and
stays so. Problems are made, and solved, searched, planned and graded, inside `double`. Whoever differentiates or compiles
functions of this library by himself asks for 64 bits once, for the whole process, by `use_64_bit`.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Callable
from typing import ParamSpec, TypeVar

import jax

Args = ParamSpec("Args")
Out = TypeVar("Out")

THREADS = 16  # ours: more than we ever have batched LAPACK calls in flight; they cost nothing measurable


def use_64_bit() -> None:
    """Switch JAX to 64 bits for the whole process: for one's own compositions of this library's functions.

    Example:
        >>> use_64_bit()
        >>> jax.numpy.zeros(1).dtype
        dtype('float64')
    """
    _start()
    jax.config.update("jax_enable_x64", True)


def double(f: Callable[Args, Out]) -> Callable[Args, Out]:
    """f, computed in 64 bits whatever the caller's JAX is set to."""

    @functools.wraps(f)
    def inside(*args: Args.args, **kwargs: Args.kwargs) -> Out:
        if jax.config.read("jax_enable_x64"):
            return f(*args, **kwargs)
        _start()
        with jax.enable_x64(True):
            return f(*args, **kwargs)

    return inside


@functools.cache
def _start() -> None:
    """Start XLA, where nobody has started it yet, and take NPROC out of the environment again."""
    jax.local_devices()
    if OURS:
        os.environ.pop("NPROC", None)


# jaxlib 0.10 deadlocks on machines with few cores: a batched LAPACK call waits for a thread of the pool it runs in, and as
# many such calls as there are threads wait for ever. XLA sizes that pool by NPROC, which it reads as it starts, perhaps by
# a caller's own first array: so it stands in the environment from this import until we know that XLA runs.
OURS = "NPROC" not in os.environ
if OURS:
    os.environ["NPROC"] = str(max(THREADS, os.cpu_count() or 1))
