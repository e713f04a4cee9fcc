"""SIGINT, SIGTERM and SIGHUP: work stops at a whole state, says so, and ends with the code that schedulers expect.

Two contexts do it. The command line runs a verb inside `raised`: a signal raises `Stopped` where it finds the program. A
loop that keeps a folder works inside `Deferred`: the first signal waits until the loop, at a whole state, has saved and
calls `check`; a second one no longer waits. A loop needs four lines:

    with signals.Deferred() as signal:
        for k in range(iterations):
            state = step(state)
            if signal.asked:
                save(state)
                signal.check()  # in here: a signal may come at any moment, also after the question

Signals reach Python's main thread only, and a handler set to "ignore" (nohup) stays so.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

ECHO = 5.0  # seconds
NAMES = ("SIGINT", "SIGTERM", "SIGHUP")  # SIGHUP: the terminal has gone; there is none on Windows


class Stopped(KeyboardInterrupt):
    """A signal that asks the program to end.

    Attributes:
        number: of the signal.
        hint: the command that goes on from what was saved, or empty.
    """

    hint: str = ""

    def __init__(self, number: int = signal.SIGINT):
        self.number = int(number)
        super().__init__(f"stopped by {signal.Signals(self.number).name}")

    @property
    def code(self) -> int:
        """The exit code: 128 + signal, as a shell reports it.

        Example:
            >>> Stopped(signal.SIGTERM).code
            143
        """
        return 128 + self.number


def _known() -> list[int]:
    return [getattr(signal, name) for name in NAMES if hasattr(signal, name)]


class _Handlers:
    """Sets the handlers of `NAMES` and puts the old ones back; does nothing outside the main thread."""

    def __init__(self) -> None:
        self.before: dict[int, Any] = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in _known():
                before = signal.getsignal(number)
                if before not in (signal.SIG_IGN, None):  # None: set by something that is not Python
                    self.before[number] = before
                    signal.signal(number, self.handle)
        return self

    def restore(self) -> None:
        """The handlers of before."""
        for number, before in self.before.items():
            signal.signal(number, before)
        self.before = {}

    def __exit__(self, kind, error, traceback) -> None:
        self.restore()

    def handle(self, number: int, frame: Any) -> None:
        """What a signal does."""
        raise Stopped(number)


def raised() -> contextlib.AbstractContextManager[Any]:
    """Inside, each of the three signals raises `Stopped`.

    Example:
        >>> try:
        ...     with raised():
        ...         signal.raise_signal(signal.SIGTERM)
        ... except Stopped as stopped:
        ...     print(stopped, stopped.code)
        stopped by SIGTERM 143
    """
    return _Handlers()


class Deferred(_Handlers):
    """Inside, the first signal waits for `check`; a second one raises `Stopped` at once.

    A scheduler signals every process of a job, and a launcher among them passes it on: the same SIGTERM or SIGHUP again,
    within `ECHO` seconds, is no second one.

    On the way out a signal that nobody checked is sent again to the handler of before. So is a SIGTERM or SIGHUP whose
    `Stopped` leaves the context where nobody but the operating system had a handler: the process then ends by that very
    signal, as without this class, but with its state saved.

    Example:
        >>> saved = False
        >>> try:
        ...     with Deferred() as asked:
        ...         signal.raise_signal(signal.SIGINT)
        ...         saved = bool(asked.asked)
        ...         asked.check()
        ... except Stopped:
        ...     print(saved)
        True
    """

    def __init__(self) -> None:
        super().__init__()
        self.asked = 0  # the number of the signal that waits
        self.since = 0.0  # when it came

    def handle(self, number: int, frame: Any) -> None:
        if self.asked:
            if number == self.asked != signal.SIGINT and time.monotonic() - self.since < ECHO:
                return
            raise Stopped(number)
        self.asked, self.since = number, time.monotonic()

    def check(self) -> None:
        """Raise `Stopped` where a signal waits."""
        if self.asked:
            raise Stopped(self.asked)

    def __exit__(self, kind, error, traceback) -> None:
        number = self.asked or (error.number if isinstance(error, Stopped) else 0)
        ends = number and self.before.get(number) is signal.SIG_DFL
        self.restore()
        if number and (ends or error is None):
            os.kill(os.getpid(), number) if ends else signal.raise_signal(number)


@contextlib.contextmanager
def hinted(hint: str) -> Iterator[None]:
    """An interruption that leaves this context says how to go on; the outermost context speaks.

    Example:
        >>> try:
        ...     with hinted("bilevel-rl resume runs/a"):
        ...         raise Stopped()
        ... except Stopped as stopped:
        ...     print(stopped.hint)
        bilevel-rl resume runs/a
    """
    try:
        yield
    except KeyboardInterrupt as error:
        error.hint = hint  # type: ignore[attr-defined]
        raise


def farewell(error: KeyboardInterrupt) -> tuple[str, int]:
    """(sentence for standard error, exit code) of an interruption.

    Example:
        >>> farewell(Stopped(signal.SIGHUP))
        ('stopped by SIGHUP; nothing was kept', 129)
    """
    stopped = error if isinstance(error, Stopped) else Stopped(signal.SIGINT)
    hint = getattr(error, "hint", "")
    return f"{stopped}; " + (f"what is done is kept, go on with: {hint}" if hint else "nothing was kept"), stopped.code
