"""For all tests: programs compiled once serve every later test and child process of this session."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import importlib.util
import mmap
import os
import tempfile
from pathlib import Path

import pytest

# A cache of this session alone, never the user's, whatever the environment says; workers take over their controller's.
if "BILEVEL_RL_TESTS_CACHE" not in os.environ:
    _cache = tempfile.TemporaryDirectory(prefix="bilevel-rl-tests-", ignore_cleanup_errors=True)
    os.environ["BILEVEL_RL_TESTS_CACHE"] = _cache.name
os.environ["JAX_COMPILATION_CACHE_DIR"] = os.environ["BILEVEL_RL_TESTS_CACHE"]
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"

# Tests compose the library's functions with JAX's own, so they ask for 64 bits, as `use_64_bit` does; their children too.
os.environ["JAX_ENABLE_X64"] = "1"

# Shapes and dtypes of the finite engine are checked at run time in tests: its annotations are read by beartype when the
# package is imported, so this comes before any test imports it.
import sys
import types

import numpy.typing
from beartype import BeartypeConf, FrozenDict, beartype
from jaxtyping import install_import_hook

# Most of what these tests cost is XLA's compilation of programs that run for milliseconds: it is asked for no optimisation
# here, and keeps everything else (`make test-all` compiles as users do). An option that this jaxlib does not know would end
# the process, so its name is looked for in the library first. A GPU's plugin reads them too, and ended the process with
# jaxlib 0.11: where one is installed, all is compiled as users do.
QUICK = {"xla_backend_optimization_level": "0", "xla_cpu_use_fusion_emitters": "false"}


def _known(option):
    """Whether some shared library of jaxlib knows the option of XLA."""
    spec = importlib.util.find_spec("jaxlib")
    for path in Path(spec.origin).parent.glob("*.so") if spec and spec.origin else ():
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as library:
            if library.find(option.encode()) >= 0:
                return True
    return False


_plugins = importlib.util.find_spec("jax_plugins") is not None
if os.environ.get("BILEVEL_RL_TESTS_COMPILE", "quick") == "quick" and not _plugins:
    _flags = os.environ.get("XLA_FLAGS", "")
    _quick = [f"--{key}={value}" for key, value in QUICK.items() if key not in _flags and _known(key)]
    os.environ["XLA_FLAGS"] = " ".join([*_quick, *_flags.split()])  # XLA reads up to the first word without dashes

# NumPy's ArrayLike, as beartype reads it, refuses a tuple of floats; anything that NumPy accepts is fine there. `Any` would
# do as well, but not where ArrayLike is an alias of its own (NumPy 2.5): beartype then refuses `ArrayLike | None`.
_conf = BeartypeConf(hint_overrides=FrozenDict({numpy.typing.ArrayLike: object}))
_checker = types.ModuleType("bilevel_rl_tests_checker")
_checker.check = beartype(conf=_conf)  # type: ignore[attr-defined]
sys.modules[_checker.__name__] = _checker
install_import_hook(["bilevel_rl.finite", "bilevel_rl.loop"], f"{_checker.__name__}.check")


def pytest_collection_finish():
    """What was imported stays: no collection of garbage, a third of a second after each file, looks at it again."""
    import hypothesis  # noqa: F401  # it asks who refers to a generator of random numbers, which nobody does once frozen

    gc.collect()
    gc.freeze()


def _make_room():
    """Forget compiled programs: thousands end in XLA's mmap failing, and glibc keeps what was freed between others."""
    if "jax" in sys.modules:
        sys.modules["jax"].clear_caches()
        gc.collect()
        if sys.platform == "linux":
            with contextlib.suppress(OSError, AttributeError):
                ctypes.CDLL("libc.so.6").malloc_trim(0)


@pytest.fixture(scope="module", autouse=True)
def _compiled_programs_make_room():
    """One file's compiled programs are of little use to the next."""
    yield
    _make_room()


LARGEST = 1.4 * 2**30  # ours: bytes of a process after a test beyond which it forgets; one test adds up to half a GB


@pytest.fixture(autouse=True)
def _memory_is_bounded():
    """No process of the tests grows beyond 2 GB, whatever the order of the tests of a file."""
    yield
    with contextlib.suppress(OSError):  # elsewhere than on Linux
        with open("/proc/self/statm") as file:
            held = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        if held > LARGEST:
            _make_room()
