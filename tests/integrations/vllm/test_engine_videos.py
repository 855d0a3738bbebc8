"""Videos on Qwen2.5-VL: what is kept of them, and where it stood, is what transformers keeps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor
from transformers.video_utils import VideoMetadata

import vtc
from tests.integrations.vllm.engines import KINDS, engine, in_vllm, path_of, slow, texts
from vtc.eval import scenes
from vtc.methods._spelling import build

SAMPLES = list(scenes.samples("test", 13))
SIZE = {"shortest_edge": 112 * 112, "longest_edge": 112 * 112}
FRAMES = dict(fps=4.0, duration=2.0, total_num_frames=8, frames_indices=list(range(8)), video_backend="opencv")
VIDEO = 3  # the placeholder's id, <unk>
ASKED = [(scenes.PROMPT.format(question=s.question).replace("<image>", "<unk>"), []) for s in SAMPLES[:12]]


def clip(n):
    """A scene that becomes the next, with noise: of tokens that are all alike any may be kept."""
    pixels = [np.asarray(sample.image.convert("RGB"), dtype=int) for sample in SAMPLES[n : n + 2]]
    frames = np.stack([pixels[0]] * 4 + [pixels[1]] * 4)
    return (frames + np.random.default_rng(n).integers(-40, 40, frames.shape)).clip(0, 255).astype(np.uint8)


@torch.inference_mode()
def by_transformers(method, budget):
    path = path_of("qwen")
    model = AutoModelForImageTextToText.from_pretrained(path, dtype=torch.float32, trust_remote_code=False).eval()
    processor = AutoProcessor.from_pretrained(path, trust_remote_code=False)
    vtc.patch(model, build(method), budget)
    found = []
    for n, (prompt, _) in enumerate(ASKED):
        about = dict(video_metadata=[VideoMetadata(**FRAMES)], do_sample_frames=False, size=SIZE)
        inputs = processor(videos=[clip(n)], text=[prompt], return_tensors="pt", **about)
        answer = model.generate(**inputs, max_new_tokens=6, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        found.append(processor.decode(answer, skip_special_tokens=True).strip())
    return found


@pytest.mark.parametrize("method", ["evs", "divprune+share", *map(slow, ("dycoke", "fastvid", "vidcom2"))])
def test_the_same_answers_as_in_transformers(method):
    each = [{"multi_modal_data": {"video": (clip(n), {**FRAMES, "do_sample_frames": False})}} for n in range(12)]
    own = [{**one, "mm_processor_kwargs": {"vtc_budget": 20, "size": SIZE}} for one in each]
    with engine(path_of("qwen"), KINDS["qwen"], method, 48, mm_processor_kwargs={"size": SIZE}) as llm:
        outputs, fewer = in_vllm(llm, ASKED, each), in_vllm(llm, ASKED, own)
    assert [one.prompt_token_ids.count(VIDEO) for one in outputs] == [48] * 12
    assert [one.prompt_token_ids.count(VIDEO) for one in fewer] == [20] * 12
    assert texts(outputs) == by_transformers(method, 48)
    assert texts(fewer) == by_transformers(method, 20)
