"""Stopping a run by a signal, so that nothing of it is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

from pinmem.distributed import Ranks


class Stopped(KeyboardInterrupt):
    """A run was asked to stop, by the number ``signal``."""

    def __init__(self, number: int, message: str = "") -> None:
        super().__init__(message)
        self.signal = number


class StopSignals:
    """Inside ``with``, SIGINT and SIGTERM wait for :meth:`check`; a second SIGINT does not."""

    def __init__(self) -> None:
        self._caught: int | None = None
        self._at_once = False
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():  # no other may set handlers
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def check(self, ranks: Ranks | None = None) -> None:
        """Raise ``Stopped`` if a signal came; to any of several ranks, who ask together."""
        caught = self._caught or 0
        if ranks is not None:
            caught = ranks.largest(caught)
        if caught:
            raise Stopped(caught)

    @contextlib.contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, where nothing is changed that would be lost, a signal raises ``Stopped``."""
        self._at_once = True
        try:
            self.check()
            yield
        finally:
            self._at_once = False

    def _handle(self, number: int, _: object) -> None:
        again = number == signal.SIGINT and self._caught is not None
        self._caught = number
        if self._at_once or again:
            raise Stopped(number)


def leave_signals_to_the_parent(_: int = 0) -> None:
    """In a process that loads data: a terminal sends Ctrl-C, and a scheduler SIGTERM, to all.

    Only a SIGTERM from the parent itself ends the process.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = os.getppid()

    def wait() -> None:
        while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
            pass
        os._exit(0)

    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    threading.Thread(target=wait, daemon=True).start()
