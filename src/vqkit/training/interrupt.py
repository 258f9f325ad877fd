"""Ctrl-C and SIGTERM as requests: finish the step, save, stop."""

from __future__ import annotations

import os
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

    Outside the main thread Python allows no signal handlers; there it does nothing. A process of
    `torchrun` whose launcher is gone is asked to stop as well: nobody would end it, and the command
    that was started again waits for the folder.
    """

    def __init__(self) -> None:
        self._received: signal.Signals | None = None
        self._previous: dict[int, Any] = {}
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None

    @property
    def received(self) -> signal.Signals | None:
        """The signal that asks to stop; SIGTERM if both came."""
        if self._launcher is not None and os.getppid() != self._launcher:
            return signal.SIGTERM
        return self._received

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
        if self._received is not signal.SIGTERM:
            self._received = signal.Signals(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
