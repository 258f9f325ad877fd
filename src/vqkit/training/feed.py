"""Batches for a loop of several processes: what cannot be read is told to all before one stops."""

from __future__ import annotations

from pathlib import Path

from vqkit.data import Batch, BatchStream, BrokenImageError


class Feed:
    """The batches of a stream, in order; an error ends them and is kept in `error`."""

    def __init__(self, stream: BatchStream, start: int) -> None:
        self._images = stream.image_set
        self._batches = stream.iterate(start)
        self._skipped = len(self._images.skipped)
        self.error: Exception | None = None

    def next(self) -> Batch | None:
        """Return the next batch, or None once one could not be made."""
        if self.error is None:
            try:
                batch = next(self._batches)
                self._check_folder()
                return batch
            except (OSError, ValueError, RuntimeError, MemoryError) as error:
                self.error = error
        return None

    def close(self) -> None:
        """Stop what prepares batches."""
        self._batches.close()

    def _check_folder(self) -> None:
        """Raise `OSError` where images are left out because the whole folder is gone."""
        skipped = len(self._images.skipped)
        if skipped == self._skipped:
            return
        self._skipped = skipped
        path = self._images.config.path
        if path is not None and not Path(path).expanduser().exists():
            raise FileNotFoundError(f"data.path={path!r}: is gone")


def unreadable(error: Exception | None) -> str:
    """Say what of the data cannot be read, for one line."""
    if isinstance(error, BrokenImageError):
        return f"{error.name}: {error.reason}"
    return str(error) if error is not None else "another process cannot read its images"
