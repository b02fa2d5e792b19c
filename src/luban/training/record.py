"""Where the loop writes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol


class Record(Protocol):
    """Where the loop writes what happened; only rank 0 has one that writes."""

    def metrics(self, record: Mapping[str, Any]) -> None:
        """Note what does not depend on the clock."""

    def timings(self, record: Mapping[str, Any]) -> None:
        """Note what does."""

    def sync(self) -> Mapping[str, int]:
        """Make the notes durable and return their sizes."""
