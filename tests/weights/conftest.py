import pytest

from tests import zoo


@pytest.fixture
def model():
    """A tiny model of the test's own, to be compressed."""
    return zoo.build("llava")
