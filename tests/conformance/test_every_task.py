"""The conformance suite on every task there is: those of luban, and whatever else is installed."""

from __future__ import annotations

from pathlib import Path

import pytest

from luban import tasks
from luban.conformance import CHECKS, Check


@pytest.mark.parametrize("name", tasks.names())
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_it_is_a_task(name: str, check: Check, tmp_path: Path) -> None:
    check(tasks.find(name), tmp_path)
