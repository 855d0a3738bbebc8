"""Every family that is served: a tiny random model gives the log probabilities of the patched one in transformers."""

from __future__ import annotations

from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from tests.integrations.vllm import zoo
from tests.integrations.vllm.engines import engine, in_vllm
from tests.integrations.vllm.families import Cell, Elsewhere, answer, check, in_turn
from tests.integrations.vllm.zoo_backed import BACKED
from vtc.integrations.vllm import ARCHITECTURES, BACKEND, ONLY_OURS, SEES_THE_TOWER

slow = pytest.mark.slow
FLAT = ("llava", "llava_next", "llava_onevision", "gemma3")  # in the folders that transformers 5 saves
QUICK = ("llava_next", "qwen3_vl", "internvl", "idefics3")  # newlines, DeepStack, tiles, words between tiles
TOWER = "visionzip fastervlm+share vispruner hiprune holov+share".split()


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory):
    other = Elsewhere(tmp_path_factory.mktemp("elsewhere") / "log")
    yield other
    other.end()


def cell(name: str, folder: Path, method: str = "divprune+share", backed: bool = False) -> Cell:
    if name == "smolvlm":
        pytest.importorskip("num2words")  # its processor wants it
    tiny = zoo.save(name, folder, BACKED.get(name))
    return Cell(str(folder), tiny.placeholder, tiny.architecture, method, backed)


@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=slow) for n in zoo.FAMILIES])
def test_vllms_own_models(name, tmp_path):
    """A picture and two, three budgets over them in one batch; with all tokens the model is the unreduced one."""
    one = cell(name, tmp_path)
    check(one.served(), one.patched())


@slow
@pytest.mark.parametrize("method", ["divprune", "bipartite", "grid"])
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_other_methods_on_vllms_own_models(name, method, tmp_path):
    one = cell(name, tmp_path, method)
    check(one.served(), one.patched())


@pytest.mark.parametrize("name", ["aya_vision", *(pytest.param(n, marks=slow) for n in BACKED if n != "aya_vision")])
def test_by_transformers_code(name, tmp_path, elsewhere):
    one = cell(name, tmp_path, backed=True)
    check(elsewhere.served(one), one.patched())


@slow
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_by_transformers_code_what_vllm_has_its_own_model_of(name, tmp_path, elsewhere):
    one = cell(name, tmp_path, backed=True)
    if one.architecture in ONLY_OURS:
        pytest.skip(f"not offered: {ONLY_OURS[one.architecture]}")
    check(elsewhere.served(one), one.patched())


@pytest.mark.parametrize(
    ("name", "method"),
    [
        # Cosines of this one's tokens tie, and VisPruner's rounds part where features differ by 3e-7.
        *(pytest.param("llava_next", method, marks=slow) for method in TOWER if method != "vispruner"),
        *(pytest.param("aya_vision", method, marks=slow) for method in TOWER),
    ],
)
def test_methods_that_look_at_the_tower(name, method, tmp_path, elsewhere):
    """``vtc serve`` takes transformers' code by itself."""
    one = cell(name, tmp_path, method)
    assert one.architecture not in SEES_THE_TOWER
    check(elsewhere.served(one), one.patched())


@slow
@pytest.mark.parametrize("method", TOWER)
@pytest.mark.parametrize("name", ["qwen2_vl", "qwen2_5_vl"])
def test_methods_that_look_at_the_tower_of_vllms_own_model(name, method, tmp_path):
    """A picture and two of other sizes, packed into one sequence."""
    one = cell(name, tmp_path, method)
    assert one.architecture in SEES_THE_TOWER
    check(one.served(), one.patched())


@slow
@pytest.mark.parametrize("method", TOWER)
def test_methods_that_look_at_the_tower_by_transformers_code_where_vllms_own_shows_it(method, tmp_path, elsewhere):
    one = cell("qwen2_5_vl", tmp_path, method, backed=True)
    check(elsewhere.served(one), one.patched())


@slow
@pytest.mark.parametrize("name", zoo.FAMILIES)
def test_without_reduction_the_tiny_model_is_transformers_in_vllm_too(name, tmp_path):
    """The control: what is compared above is ours alone. vLLM's own classes read no flat tower (``FlatTower``)."""
    from vtc.integrations.vllm.families.llava import nested

    one = cell(name, tmp_path)
    asked = one.asked()[0][::3]
    want = in_turn(one.path, asked, [1.0] * 4, "grid")
    if name in FLAT:
        file = tmp_path / "model.safetensors"
        save_file({nested(key): value for key, value in load_file(file).items()}, file, {"format": "pt"})
    with engine(one.path, "", "", None) as llm:
        got = [answer(output) for output in in_vllm(llm, asked, logprobs=0, ignore_eos=True)]
    for (tokens, chances), (right, known) in zip(got, want, strict=True):
        assert tokens == right and chances == pytest.approx(known, abs=1e-4)


def test_every_family_that_is_named_is_here():
    own = {tiny.architecture for tiny in zoo.FAMILIES.values()}
    backed = {tiny.architecture for tiny in BACKED.values()}
    assert own == {name for name, file in ARCHITECTURES.items() if file != BACKEND}
    assert backed == {name for name, file in ARCHITECTURES.items() if file == BACKEND}
