"""The built-in testbed: pictures drawn from a seed, questions about them, and a small trained model that answers.

Drawing and asking need numpy and Pillow only; the checkpoint is a folder that transformers loads.
"""

from pathlib import Path

from vtc.eval.scenes.ask import ONE_HOP, TWO_HOP, TYPES, Question, ask
from vtc.eval.scenes.draw import CROWD, PATCH, SIZE, Object, Scene, scene
from vtc.eval.scenes.page import page
from vtc.eval.scenes.sample import PROMPT, Sample, samples
from vtc.eval.scenes.splits import SPLITS

__all__ = [
    "CROWD",
    "ONE_HOP",
    "PATCH",
    "PROMPT",
    "SIZE",
    "SPLITS",
    "TWO_HOP",
    "TYPES",
    "Object",
    "Question",
    "Sample",
    "Scene",
    "ask",
    "checkpoint_path",
    "page",
    "samples",
    "scene",
]


NAMES = {"scenes": "llava", "scenes-qwen": "qwen"}
"""What the testbed's models are called where a model is asked for."""


def checkpoint_path(kind: str = "llava") -> Path:
    """The folder of a trained model, `llava` or `qwen`: an argument for `from_pretrained`."""
    return Path(__file__).parent / ("checkpoint" if kind == "llava" else f"checkpoint_{kind}")
