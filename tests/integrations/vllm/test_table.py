"""Which families are served, and what is said of it. Needs no vLLM."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from transformers.models.auto.modeling_auto import MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES
from typer.testing import CliRunner

from vtc.cli import app
from vtc.errors import UnsupportedModel
from vtc.integrations.vllm import (
    ARCHITECTURES,
    IN_A_LINE,
    NOT_SERVED,
    ONLY_OURS,
    SEES_THE_TOWER,
    classes,
    own,
    plain,
)
from vtc.integrations.vllm.launch import overrides
from vtc.integrations.vllm.settings import Settings
from vtc.integrations.vllm.table import families_table
from vtc.models import registry

PAGE = Path(__file__).parents[3] / "docs" / "serving.md"


def test_the_document_has_the_table():
    printed = CliRunner().invoke(app, ["serve", "--families"])
    assert printed.exit_code == 0 and printed.output.strip() == families_table()
    assert families_table() in PAGE.read_text("utf-8"), "put what `vtc serve --families` prints into docs/serving.md"


def test_every_family_that_vtc_patches_is_served_or_has_a_reason():
    kinds = {name.partition(":")[0] for name in registry}
    names = {MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES[kind] for kind in kinds}
    assert names == set(ARCHITECTURES) | set(NOT_SERVED)
    assert not set(ARCHITECTURES) & set(NOT_SERVED)


def test_the_names_agree():
    for names in (IN_A_LINE, ONLY_OURS, SEES_THE_TOWER):
        assert set(names) <= set(ARCHITECTURES)
    for name in ARCHITECTURES:
        for tower in (False, True):
            assert plain(own(name, tower)) == name and own(name, tower) in classes()
    folder = Path(str(find_spec("vtc.integrations.vllm.families").submodule_search_locations[0]))
    assert set(ARCHITECTURES.values()) == {p.stem for p in folder.glob("*.py")} - {"__init__"}


@pytest.mark.parametrize(
    ("name", "method", "architectures"),
    [
        ("Qwen2_5_VL", "divprune+share", ["VtcQwen2_5_VL"]),
        ("Qwen2_5_VL", "visionzip", ["VtcQwen2_5_VL"]),
        ("Gemma3", "visionzip", ["VtcBackedGemma3", "Gemma3"]),
        ("VtcGemma3", "visionzip", ["VtcBackedGemma3", "Gemma3"]),
        ("VtcBackedQwen2_5_VL", "grid", ["VtcQwen2_5_VL"]),
        ("AyaVision", "grid", ["VtcBackedAyaVision", "AyaVision"]),
        ("Llava", "visionzip", ["VtcLlava"]),
    ],
)
def test_what_is_asked_for_picks_the_class(name, method, architectures):
    said = overrides([f"{name}ForConditionalGeneration"], Settings(method, 24))
    assert [one.removesuffix("ForConditionalGeneration") for one in said["architectures"]] == architectures


@pytest.mark.parametrize(
    ("name", "method", "why"),
    [
        ("Qwen3VL", "visionzip", "looks at tower attention .* drops its DeepStack"),
        ("Glm4vMoe", "visionzip", "looks at tower attention .* its experts"),
        ("SmolVLM", "visionzip", "looks at tower attention .* does not count placeholders"),
        ("Janus", "grid", "does not count placeholders"),
    ],
)
def test_what_is_not_served_says_why(name, method, why):
    with pytest.raises(UnsupportedModel, match=why):
        overrides([f"{name}ForConditionalGeneration"], Settings(method, 24))
