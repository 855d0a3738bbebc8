import pytest

from tests.golden import cases
from tests.pictures import batch, picture
from tests.tolerances import assert_same
from vtc.methods.base import Stage
from vtc.methods.fastv import FastV
from vtc.signals.text_attention import TextAttention


@pytest.mark.parametrize(("given", "want", "params"), cases("fastv"))
def test_equals_the_authors(given, want, params):
    """The last row of attention, mean over heads, at the picture's columns."""
    start, n = params["image_start"], params["image_len"]
    tokens = batch([picture((1, 1, n), 1)])
    seen = {TextAttention("previous"): given["last_row"].mean(0)[None, start : start + n]}
    got = FastV().reduce(0, tokens, seen, [round(n * (1 - params["R"]))])
    assert_same("kept", got.anchor[0], want["keep"])


def test_layer_is_a_fraction_of_depth_by_default():
    stage = FastV().stages()[0]
    assert [stage.index(depth) for depth in (32, 8, 4, 2)] == [2, 1, 1, 1]
    assert FastV(layer=3).stages() == (Stage(3),)
    assert FastV().signals(0) == (TextAttention("previous"),)


@pytest.mark.parametrize("layer", [0, 0.0, -1, -0.5, 1.0, 2.5, True, float("nan"), float("inf"), "2", None])
def test_bad_layers(layer):
    with pytest.raises(ValueError, match=r"layer.*give an int"):
        FastV(layer=layer)
