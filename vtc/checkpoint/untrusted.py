"""What no folder and no model of the hub may bring: code to run, pickles to open. Looked for before anything is loaded.

transformers asks whether to run a folder's own classes, fetches attention kernels that a config names and opens
pickled weights; each runs what a stranger wrote, with the user's files and keys in reach. vtc does none of it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from vtc.errors import CheckpointError
from vtc.files.strict import DEEPEST

WEIGHTS, INDEX, ADAPTER = "model.safetensors", "model.safetensors.index.json", "adapter_config.json"
PICKLED = (".bin", ".bin.index.json", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
# Settings of PEFT: how an adapter began, which is no part of it later, and all by which it looks outside its folder.
INITIAL = ("corda_config", "eva_config", "lora_ga_config")
OUTSIDE = ("megatron_config", "adapters", "shadow_model", "tokenizer_name_or_path", "tokenizer_kwargs")
# Names of files, or of folders, that transformers reads into a model, and into a processor (tokenization_*.py and
# utils/__init__.py of transformers 5.23). Others are free.
MODEL = ("config.json", "generation_config.json", "adapter_config.json", "*.safetensors", "*.safetensors.index.json")
PROCESSOR = (
    *("*processor*_config.json", "audio_tokenizer_config.json", "chat_template.*", "additional_chat_templates"),
    *("tokenizer*", "special_tokens_map.json", "added_tokens.json", "tekken.json", "*.tokenizer", "*.tiktoken"),
    *("*.model", "*.spm", "*vocab*.json", "*vocab*.txt", "merges.txt", "dict.txt", "bpe.codes", "emoji.json"),
    *("normalizer.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json"),
)
RISK = "vtc never runs the code of a folder, which could do anything with your files and keys"


def reads(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a path inside a folder is, or is in, one of ``patterns``."""
    return any(fnmatchcase(name.split("/")[0], pattern) for pattern in patterns)


def check_safe(model: str | Path) -> None:
    """Raises ``CheckpointError`` for a folder, or a model of the hub, that asks for code or keeps weights in pickles,
    and for JSON in a folder that transformers would fall over. What is missing is left to who loads it."""
    check_json(Path(model))
    config, adapter = _told(model, "config.json"), _told(model, ADAPTER)
    for name, value in _named(config):
        if name.endswith("_implementation") and "/" in str(value):
            raise CheckpointError(f"{model}: config.json takes {name} from the hub ({value!r}), and {RISK}; remove it")
    shards = _told(model, INDEX).get("weight_map")
    files = [str(config.get("transformers_weights") or WEIGHTS), *(shards.values() if isinstance(shards, dict) else ())]
    folder = Path(model)
    if folder.is_dir():
        missing = not shards and not (folder / files[0]).is_file()
        files += [path.name for path in folder.iterdir()] if missing else []
        lacking = adapter and not (folder / "adapter_model.safetensors").is_file()
        files += [path.name for path in folder.glob("adapter_model*")] if lacking else []
    for name in files:
        if str(name).endswith(PICKLED):
            raise CheckpointError(
                f"{model} has {name} where safetensors belong: a pickle can run any code when it is opened, so vtc "
                "opens none; where you trust it, load it by from_pretrained(..., use_safetensors=False), and save it"
            )
    check_adapter(adapter, f"{model}: {ADAPTER}")


def check_json(folder: Path) -> None:
    """Raises ``CheckpointError`` for a file of JSON that transformers reads and that holds no object, or one nested
    beyond what any has: it would be a raw error, of the type that it happens to meet."""
    for path in sorted(folder.glob("*.json")):
        if not reads(path.name, MODEL + PROCESSOR):
            continue
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            level = [found] if isinstance(found, dict) else []
            for _ in range(DEEPEST):
                level = [v for each in level for v in (each.values() if isinstance(each, dict) else each)]
                level = [each for each in level if isinstance(each, dict | list)]
        except (OSError, ValueError, RecursionError) as error:
            raise CheckpointError(f"{path} cannot be read as JSON ({error}); copy it again, or save again") from error
        if level or not isinstance(found, dict):
            kind = f"values nested deeper than {DEEPEST}" if level else f"a {type(found).__name__}"
            raise CheckpointError(f"{path} holds {kind}, where an object of settings belongs; copy it again")


def check_adapter(told: dict[str, Any], where: str) -> None:
    """Raises ``CheckpointError`` for settings of PEFT by which it would import modules, or open files and models that
    are named there."""
    named = [name for name in (*OUTSIDE, *INITIAL) if told.get(name)]
    named += ["init_lora_weights"] if isinstance(told.get("init_lora_weights"), str) else []
    if named:
        raise CheckpointError(
            f"{where} sets {', '.join(named)}, by which PEFT reads or imports what is elsewhere; {RISK}"
        )


def wants_trust(error: Exception) -> bool:
    """Whether transformers refused to go on without a model's own code."""
    return "trust_remote_code" in str(error)


def explained(error: Exception) -> str:
    """What to tell of an error of transformers: its advice to trust a model's code is not ours."""
    if not wants_trust(error):
        return " ".join(str(error).split())[:400]
    return (
        f"it has classes of its own, which transformers would have to run, and {RISK}; take a model that transformers "
        "knows, or read its code, load it yourself with trust_remote_code and vtc.patch it"
    )


def _told(model: str | Path, name: str) -> dict[str, Any]:
    """A JSON file of the model, empty where it has none."""
    from transformers.utils import cached_file

    try:
        path = cached_file(str(model), name, _raise_exceptions_for_missing_entries=False)
        found = json.loads(Path(path).read_text(encoding="utf-8")) if path else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return found if isinstance(found, dict) else {}


def _named(config: Any) -> Iterator[tuple[str, Any]]:
    """Every name and value in a config and in those inside it."""
    left = [config]
    while left:
        part = left.pop()
        if isinstance(part, dict):
            yield from part.items()
            left += part.values()
        elif isinstance(part, list):
            left += part
