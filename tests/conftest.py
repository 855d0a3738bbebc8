"""Shared set-up: one thread, quiet transformers, models that are made once and must leave each test unpatched."""

from __future__ import annotations

import functools
import logging

import pytest
import torch

torch.set_num_threads(1)
logging.getLogger("transformers").setLevel(logging.ERROR)


def pytest_addoption(parser) -> None:
    parser.addoption(
        "--entry", action="append", default=[], metavar="NAME", help="run the contract suites on this entry alone"
    )


def pytest_configure(config) -> None:
    from tests.own import NAMED

    NAMED[:] = config.getoption("--entry")


@functools.lru_cache(maxsize=8)
def _model(name: str, attn: str, dtype: torch.dtype, layers: int):
    from tests import zoo

    return zoo.build(name, attn=attn, dtype=dtype, layers=layers)


@pytest.fixture
def model_of():
    """``model_of(name, attn="sdpa", dtype=torch.float32)``: a tiny model, shared by tests, unpatched afterwards."""
    import vtc

    used = []

    def make(name: str, attn: str = "sdpa", dtype: torch.dtype = torch.float32, layers: int = 4):
        used.append(_model(name, attn, dtype, layers))
        return used[-1]

    yield make
    for model in used:
        vtc.unpatch(model)
