"""Ctrl-C and SIGTERM as requests: finish the step, save, stop."""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import Any


class Terminated(KeyboardInterrupt):
    """SIGTERM, as batch systems send it to a job that must make room; the run is saved."""

    exit_code = 143
    """128 + SIGTERM: what `vqkit` ends with."""


class Interrupt:
    """Within it the first SIGINT or SIGTERM is only noted; a second SIGINT acts at once.

    Outside the main thread Python allows no signal handlers; there it does nothing.
    """

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        """The signal that asks to stop; SIGTERM if both came."""
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal asks to stop."""
        return self.received is not None

    def __enter__(self) -> Interrupt:
        """Install the handlers."""
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._request)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Put the former handlers back."""
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.received is not signal.SIGTERM:
            self.received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
