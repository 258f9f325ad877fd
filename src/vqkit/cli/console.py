"""Words for the person at the terminal: results on stdout, what is going on on stderr."""

from __future__ import annotations

import sys


def say(text: str) -> None:
    """Write a result."""
    sys.stdout.write(text + "\n")


def tell(text: str) -> None:
    """Write what is going on, at once."""
    sys.stderr.write(text + "\n")
    sys.stderr.flush()
