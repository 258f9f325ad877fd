"""Words for the person at the terminal: results on stdout, what is going on on stderr."""

from __future__ import annotations

import logging
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


def say(text: str) -> None:
    """Write a result."""
    sys.stdout.write(text + "\n")


def tell(text: str) -> None:
    """Write what is going on, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Tell warnings in one line each, and of those about the same setting only the first."""
    told: set[str] = set()

    def show(message: Warning | str, *_: Any, **__: Any) -> None:
        text = " ".join(str(message).split())
        setting = text.partition(": ")[0]
        if setting not in told:
            told.add(setting)
            tell(f"warning: {text}")

    with warnings.catch_warnings():
        warnings.simplefilter("always", UserWarning)
        warnings.showwarning = show
        yield


@contextmanager
def told_of(logger: logging.Logger) -> Iterator[None]:
    """Tell what `logger` logs, news without a problem included."""
    handler, level = _Teller(), logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)


class _Teller(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        tell(self.format(record))
