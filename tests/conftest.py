"""Fixtures shared by all tests."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import hypothesis
import pytest

# Tests check what is done, not how long it takes: a busy machine must not fail one.
hypothesis.settings.register_profile("luban", deadline=None)
hypothesis.settings.load_profile("luban")

# Doctests are collected from modules; two conftest.py of one name cannot both be imported as such.
collect_ignore_glob = ["*/conftest.py"]


@pytest.fixture(scope="session", autouse=True)
def memory_goes_back() -> Iterator[None]:
    """A run keeps freed memory for good; the process of the tests runs hundreds, and some tests count what is free."""
    with mock.patch("luban.training.loop.keep_memory"):
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data sets: LUBAN_DATA, or ../shared/data beside the project."""
    folder = Path(os.environ.get("LUBAN_DATA", Path(__file__).parents[2] / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data sets at {folder}; set LUBAN_DATA to a folder that has them")
    return folder


@pytest.fixture(scope="session")
def library() -> Any:
    """The kernels as this machine's GCC makes them."""
    from luban.kernels import NoKernelsError, find

    try:
        return find()
    except NoKernelsError as error:
        pytest.skip(f"no kernels on this machine: {error}")


@pytest.fixture(scope="session")
def multiplying(library: Any) -> Any:
    """The kernels of a processor that multiplies bfloat16 numbers."""
    import torch

    if not library.multiplies(torch.bfloat16):
        pytest.skip("this processor has no products of bfloat16 numbers")
    return library
