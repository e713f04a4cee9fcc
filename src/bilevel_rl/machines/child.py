"""`python -m bilevel_rl.machines.child PARENT MODULE WORD ...`: a module as a program that ends with its parent.

Where the parent is killed, nobody tells its children. This one looks, sends itself SIGTERM, and so saves what it has. A
temporary folder that was its parent's to remove goes by a keeper, a process that does nothing else: a worker of Ray that
ends takes its children with it by SIGKILL, and whoever is killed so removes nothing.
"""

from __future__ import annotations

import os
import runpy
import shutil
import signal
import sys
import threading
import time
from collections.abc import Sequence

from bilevel_rl import compiled, records

LOOK = 0.5  # seconds between looks at the parent
SCRATCH = "BILEVEL_RL_SCRATCH"  # a folder that goes when nobody is left to want it


def main(argv: Sequence[str]) -> None:
    """Run the module as `python -m` does."""
    parent, module, *words = argv
    if os.environ.get(SCRATCH):
        _keep(int(parent), os.environ[SCRATCH])
    threading.Thread(target=_follow, args=(int(parent),), daemon=True).start()
    if hasattr(signal, "SIGUSR2"):  # submitit's word to the task that started this: everyone hears it
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    # as the command line does, before JAX is imported
    compiled.keep()
    os.environ.setdefault("JAX_ENABLE_X64", "1")
    sys.argv = [module, *words]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


def _keep(parent: int, folder: str) -> None:
    """Have a folder removed once parent and child are gone, where the parent has not done it."""
    child = os.getpid()
    if not hasattr(os, "fork") or os.fork():
        return
    os.setsid()  # a signal to the job is none to its keeper
    while os.path.exists(folder) and (records.alive(str(parent)) or os.getppid() == child):
        time.sleep(LOOK)
    if not records.alive(str(parent)):
        shutil.rmtree(folder, ignore_errors=True)
    os._exit(0)


def _follow(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(LOOK)
    os.kill(os.getpid(), signal.SIGTERM)


if __name__ == "__main__":
    main(sys.argv[1:])
