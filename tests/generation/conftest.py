from __future__ import annotations

import pytest

from tacit.generation.native_library import Unavailable, library


@pytest.fixture(scope="session")
def native() -> None:
    """Skips where there is no compiler: the generic decoder does its work there."""
    try:
        library()
    except Unavailable as error:
        pytest.skip(f"no native decoder: {error}")
