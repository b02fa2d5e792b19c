"""The kernels as this machine's GCC makes them."""

import pytest

from luban.kernels import Library, NoKernelsError, find


@pytest.fixture(scope="session")
def library() -> Library:
    try:
        return find()
    except NoKernelsError as error:
        pytest.skip(f"no kernels on this machine: {error}")
