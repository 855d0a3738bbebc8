"""What is refused before a processor or a model sees it, by sizes alone."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
import transformers
from PIL import Image

from tests.eval.tiny import tiny_llava
from vtc.errors import DataError
from vtc.eval.asking.limits import (
    MAX_RATIO,
    MAX_TEXT,
    MAX_TOGETHER,
    check_inputs,
    check_pictures,
    check_texts,
    check_together,
    pixels_made,
)
from vtc.eval.benchmarks import Sample
from vtc.eval.data.images import MAX_PIXELS


def processor(size, **more):
    return SimpleNamespace(image_processor=SimpleNamespace(size=size, **more))


SIDES = {"height": 448, "width": 336}
MADE = [  # size of the processor, more of it, (width, height), pixels of the largest picture on its way
    ({"shortest_edge": 112}, {}, (1, 65535), 112 * 112 * 65535),
    ({"shortest_edge": 112}, {}, (65535, 1), 112 * 112 * 65535),
    ({"shortest_edge": 336}, {}, (640, 480), 336 * 448),
    ({"shortest_edge": 224}, {"do_pad": True}, (1, 5000), 224 * 224 * 5000),
    ({"shortest_edge": 224}, {"do_pad": True}, (5000, 4900), 5000 * 5000),
    ({"shortest_edge": 3136, "longest_edge": 1003520}, {}, (1, 5000), 0),  # pixels, as Qwen-VL means it
    ({"shortest_edge": 378, "longest_edge": 980}, {}, (1, 5000), 0),
    ({"longest_edge": 1024}, {"do_pad": True}, (1, 5000), 0),
    (SIDES, {"do_pad": True}, (1, 5000), 448 * 336),
    ({"min_pixels": 262144, "max_pixels": 1048576}, {}, (1, 5000), 0),
    (None, {}, (1, 5000), 0),
    (224, {}, (1, 5000), 0),  # transformers makes a dict of it
]


@pytest.mark.parametrize(("size", "more", "picture", "made"), MADE, ids=str)
def test_pixels_a_processor_makes(size, more, picture, made):
    assert pixels_made(*picture, processor(size, **more).image_processor) == made


TAKEN = [((1, MAX_RATIO), 336), ((MAX_RATIO * 7, 7), 336), ((8000, 8000), 336), ((1, 1), 8000), ((640, 480), 1024)]
REFUSED = [
    ((1, MAX_RATIO + 1), 336, "thinner than 1:200"),
    ((65535, 1), 112, "thinner than 1:200"),
    ((1, 65535), 112, "thinner than 1:200"),
    ((1, MAX_RATIO), 1024, "would make 209,715,200 pixels, above 64,000,000"),
    ((1, 2), 8000, "would make 128,000,000 pixels"),
]


@pytest.mark.parametrize(("size", "edge"), TAKEN, ids=str)
def test_pictures_that_are_taken(size, edge):
    check_pictures([size], processor({"shortest_edge": edge}), "q:1")
    check_pictures([size], SimpleNamespace(), "q:1")


@pytest.mark.parametrize(("size", "edge", "words"), REFUSED, ids=str)
def test_pictures_that_are_refused(size, edge, words):
    with pytest.raises(DataError, match=f"q:1: .*{size[0]} x {size[1]}.*{words}"):
        check_pictures([(30, 30), size], processor({"shortest_edge": edge}), "q:1")


def test_pictures_of_a_question_are_limited_together():
    one = processor({"shortest_edge": 8000})
    check_pictures([(1, 1)] * (MAX_TOGETHER // MAX_PIXELS), one, "q:1")
    with pytest.raises(DataError, match="q:1: its pictures have 320,000,000 pixels, above 256,000,000"):
        check_pictures([(1, 1)] * (1 + MAX_TOGETHER // MAX_PIXELS), one, "q:1")
    check_together(MAX_TOGETHER, "q:1")
    with pytest.raises(DataError, match="above 256,000,000"):
        check_together(MAX_TOGETHER + 1, "q:1")


KINDS = (  # transformers' processors of pictures, a kind of resizing each
    *("CLIPImageProcessorPil", "LlavaImageProcessorPil", "LlavaNextImageProcessorPil", "Qwen2VLImageProcessorPil"),
    *("Idefics2ImageProcessorPil", "Idefics3ImageProcessorPil", "PixtralImageProcessorPil", "SiglipImageProcessorPil"),
    *("LlavaOnevisionImageProcessorPil", "GotOcr2ImageProcessorPil", "Glm4vImageProcessorPil", "AriaImageProcessorPil"),
    *("Ovis2ImageProcessorPil", "Gemma3ImageProcessorPil", "ChameleonImageProcessorPil", "JanusImageProcessorPil"),
)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(1, 200), (200, 1), (10, 1990), (600, 3)], ids=str)
def test_what_passes_stays_small_on_the_way(kind, size, monkeypatch):
    """What each processor makes of thin pictures, watched where Pillow resizes them and in what comes out."""
    if not hasattr(transformers, kind):
        pytest.skip(f"this transformers has no {kind}")
    image, made = getattr(transformers, kind)(), [0]
    real = Image.Image.resize

    def resize(self, to, *args, **options):
        made.append(to[0] * to[1])
        return real(self, to, *args, **options)

    monkeypatch.setattr(Image.Image, "resize", resize)
    check_pictures([size], SimpleNamespace(image_processor=image), "q:1")
    try:
        out = image([Image.new("RGB", size)], return_tensors="pt")
        made.append(out["pixel_values"].numel() // 3)
    except ValueError as error:
        assert "ratio" in str(error).lower() or "zero" in str(error).lower() or "size" in str(error).lower()
    expected = pixels_made(*size, image)
    assert max(made) <= MAX_PIXELS
    if "shortest_edge" in dict(image.size or {}) and expected:
        assert max(made) <= expected


def sample(**texts):
    return Sample(**({"id": "1", "question": "what ?", "answers": ("red",), "where": "q:1"} | texts))


@pytest.mark.parametrize(
    ("texts", "name"),
    [
        ({"id": "\ud800"}, "id"),
        ({"question": "a \udfff"}, "question"),
        ({"answers": ("red", "\udc80")}, "answer 2"),
        ({"options": ("\ud800",)}, "option 1"),
        ({"type": "\ud800"}, "type"),
        ({"group": "\ud800"}, "group"),
    ],
)
def test_half_a_character_is_named(texts, name):
    with pytest.raises(DataError, match=f"q:1: {name} holds half a character"):
        check_texts(sample(**texts))


def test_whole_characters_are_taken():
    check_texts(sample(question="😀 é ﷽ \0 \u2028", answers=("", "٣"), type="<script>"))


@pytest.mark.parametrize("name", ["id", "question", "type", "group"])
def test_texts_have_a_length(name):
    check_texts(sample(**{name: "x" * MAX_TEXT}))
    with pytest.raises(DataError, match=f"q:1: {name} has 1,000,001 characters, above 1,000,000"):
        check_texts(sample(**{name: "x" * (MAX_TEXT + 1)}))


def test_a_prompt_leaves_room_for_its_answer():
    config = tiny_llava().config  # a context of 256
    check_inputs({"input_ids": torch.zeros(2, 252)}, 4, config)
    with pytest.raises(DataError, match="253 tokens, pictures included, and the answer up to 4; .*256"):
        check_inputs({"input_ids": torch.zeros(2, 253)}, 4, config)
    unknown = SimpleNamespace(get_text_config=SimpleNamespace)  # a model that does not say
    check_inputs({"input_ids": torch.zeros(1, 10**6)}, 4, unknown)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_pixels_are_numbers(value):
    pixels = torch.zeros(1, 3, 4, 4)
    config = tiny_llava().config
    check_inputs({"input_ids": torch.zeros(1, 4), "pixel_values": pixels}, 4, config)
    pixels[0, 1, 2, 3] = value
    with pytest.raises(DataError, match="NaN or infinite pixels"):
        check_inputs({"input_ids": torch.zeros(1, 4), "pixel_values": pixels}, 4, config)
