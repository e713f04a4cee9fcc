"""One compiled program for an exact answer that is asked for on its own.

Called outside of any other program, a function of arrays costs a compilation for each of its hundred operations, and then
a dispatch of each at every call. As one program it costs one of either.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import equinox as eqx
import jax
import jax.numpy as jnp
import numpy as np

Args = ParamSpec("Args")
Out = TypeVar("Out")


def compiled(f: Callable[Args, Out]) -> Callable[Args, Out]:
    """f as one program where it is called with values; as it stands within another program.

    What f refuses by an exception it can only make NaN in a compiled program (`linear.refuse`), so an answer that is not
    finite is asked for again operation by operation, and f says what is wrong with it. Numbers but 0 are arrays of the
    program, which serves every temperature; 0 stays a number, since functions branch on a temperature of exactly 0.

    Example:
        >>> float(compiled(lambda x, tau: (x * tau).sum())(jax.numpy.ones(3), 0.5))
        1.5
    """
    program = eqx.filter_jit(f)

    @functools.wraps(f)
    def asked(*args: Args.args, **kwargs: Args.kwargs) -> Out:
        leaves = jax.tree.leaves((args, kwargs))
        if any(isinstance(leaf, jax.core.Tracer) for leaf in leaves):
            return f(*args, **kwargs)
        found = program(*(_array(a) for a in args), **{key: _array(a) for key, a in kwargs.items()})
        return found if _finite(found) else f(*args, **kwargs)

    return asked


def tried(f: Callable[Args, Out]) -> Callable[Args, Out]:
    """f as one program where that can be; where it can't, as it stands, and whatever is wrong with it is raised there.

    For checks of what a user wrote, of which nothing is known yet.

    Example:
        >>> float(tried(lambda x: 1.0 if x > 0 else 0.0)(jax.numpy.ones(())))
        1.0
    """
    program = eqx.filter_jit(f)

    @functools.wraps(f)
    def asked(*args: Args.args, **kwargs: Args.kwargs) -> Out:
        try:
            return program(*args, **kwargs)
        except Exception:  # whatever JAX or the user's code raises
            return f(*args, **kwargs)

    return asked


def _array(value: Any) -> Any:
    return jnp.asarray(value) if isinstance(value, float) and value != 0 else value


def _finite(found: Any) -> bool:
    return all(
        isinstance(leaf, jax.core.Tracer) or np.isfinite(np.asarray(leaf)).all() for leaf in jax.tree.leaves(found)
    )
