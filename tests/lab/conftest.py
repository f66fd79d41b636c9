from collections.abc import Iterator

import pytest

from testing.lab import Lab, LabUnavailable


@pytest.fixture(scope="module")
def lab() -> Iterator[Lab]:
    """A lab for the module; without root or its programs the tests are skipped, saying what is missing."""
    try:
        lab = Lab()
    except LabUnavailable as reason:
        pytest.skip(f"no lab here: {reason}")
    with lab:
        yield lab
