"""Compressed weights as files. A format of ``vtc.save`` is one file that registers how a model is written:
transformers' own (``hf``), ``compressed_tensors``. ``gguf`` exports the language model alone; the ``manifest`` stands
beside any of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from vtc.registry import Registry

registry: Registry[Callable[[Any, Path], None]] = Registry("format", __name__, group="vtc.formats")
register = registry.register
