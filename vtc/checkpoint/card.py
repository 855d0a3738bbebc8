"""The model card of a saved folder, made from its ``vtc_config.json``: what the hub and its readers ask first."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from vtc.checkpoint.learned import ADAPTER
from vtc.checkpoint.peft import CONFIG, FOLDER, TENSORS
from vtc.files import escape

CARD = "README.md"
OURS = "<!-- Written by vtc.save, which writes it anew unless this line is removed. -->"


def write_card(folder: Path, config: dict[str, Any], older: Path) -> None:
    """Write the card of ``folder``, of which ``config`` tells, unless ``older``, the card that was there, is somebody
    else's."""
    if not older.is_file() or OURS in older.read_text(encoding="utf-8", errors="replace"):
        (folder / CARD).write_text(card(folder, config), encoding="utf-8")


def card(folder: Path, config: dict[str, Any]) -> str:
    """Front matter as the hub reads it, a table, and how to load it."""
    from huggingface_hub import ModelCardData

    name = config["base_model"]
    hub = of_hub(name)
    base = name if hub else Path(name).name
    head = ModelCardData(
        base_model=name if hub else None,
        library_name="transformers",
        pipeline_tag="image-text-to-text",
        tags=["vtc", *([config["method"]] if config["method"] else [])],
    )
    rows = "\n".join(f"| {what} | {value} |" for what, value in facts(folder, config, base))
    title = f"# {escape.markdown(base)}, saved by vtc"
    return f"---\n{head.to_yaml()}\n---\n{OURS}\n{title}\n\n| | |\n|---|---|\n{rows}\n\n{usage(config)}"


def of_hub(name: str) -> bool:
    """Whether ``name`` is a model of the hub: a relative path, gone by now, looks alike, but is not in its cache."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        cached = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return False
    return "/" in name and not Path(name).exists() and isinstance(cached, str)


def facts(folder: Path, config: dict[str, Any], base: str) -> list[tuple[str, str]]:
    """The rows of the table."""
    rows = [("base", escape.code(base))]
    if config["method"] is not None:
        budget = config["budget"]
        least = f"{budget} vision tokens" if isinstance(budget, int) else f"{budget:.4g} of the vision tokens"
        rows.append(("method", f"{escape.code(config['method'])} {code(config['options'])}"))
        rows.append(("budget", f"{least} of a picture, averaged over the decoder layers"))
    if (folder / ADAPTER).is_file():
        rows.append(("learned by the method", f"{parameters(folder / ADAPTER)} parameters, `{ADAPTER}`"))
    if "adapter" in config:
        told = json.loads((folder / FOLDER / CONFIG).read_text(encoding="utf-8"))
        kind = told["peft_type"] + (f" of rank {told['r']}" if "r" in told else "")
        rows.append(("adapter of PEFT", f"{kind}, {parameters(folder / FOLDER / TENSORS)} parameters, `{FOLDER}`"))
    if config["compression"] is not None:
        rows.append(("compressed weights", f"{code(config['compression'].get('recipe'))}"))
    versions = ", ".join(f"{name} {version}" for name, version in config["versions"].items())
    return [*rows, ("SHA-256 of the weights", f"`{config['weights_sha256']}`"), ("saved with", versions)]


def usage(config: dict[str, Any]) -> str:
    """How to load it, and what is lost without vtc."""
    needs = "vtc-vlm[train]" if "adapter" in config else "vtc-vlm"
    lost = ["the method"] * (config["method"] is not None) + ["the adapter"] * ("adapter" in config)
    alone = f"`from_pretrained` alone gives the base without {' and '.join(lost)}.\n" if lost else ""
    if config["compression"] is not None:
        alone += "The weights are compressed: `from_pretrained` reads them after `import vtc.weights`.\n"
    return f"""```python
# pip install '{needs}'
import vtc
from huggingface_hub import snapshot_download

model = vtc.load(snapshot_download("USER/NAME"))  # or a folder
```

{alone}"""


def parameters(path: Path) -> str:
    """How many numbers a safetensors file holds."""
    from safetensors import safe_open

    with safe_open(path, "pt") as tensors:
        return f"{sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys()):,}"


def code(value: Any) -> str:
    return "" if not value else escape.code(json.dumps(value, sort_keys=True))
