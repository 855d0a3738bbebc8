"""The same cases against the Triton kernels, in Triton's interpreter: no GPU, a process of its own."""

import pytest

from tests.kernels.interpreter import run_interpreted

SMALL = {
    "test_received_attention": "not opcheck and (not float64 or 72 or 256)",
    "test_merge_op": "not opcheck",
    "test_match": "not opcheck",
    "test_greedy_diverse": "not opcheck",
}


@pytest.mark.parametrize("file", SMALL)
def test_kernels_pass_the_cases_of_the_reference(file):
    run_interpreted(file, SMALL[file])


@pytest.mark.slow
@pytest.mark.parametrize("file", [*SMALL, "../engine/test_merge", "../methods/test_share"])
def test_kernels_pass_all_cases(file):
    run_interpreted(file, "test")
