"""A process of its own that only imports vtc: what each way into a folder gives. Prints a JSON object of outcomes."""

from __future__ import annotations

import json
import sys

import transformers

import vtc  # noqa: F401  # nothing of it is used

WAYS = ("AutoModelForImageTextToText", "AutoModel", "AutoModelForCausalLM", "pipeline")


def outcome(way: str, folder: str) -> str:
    try:
        if way == "pipeline":
            transformers.pipeline("image-text-to-text", model=folder)
        else:
            getattr(transformers, way).from_pretrained(folder)
    except (OSError, ValueError) as error:
        return str(error)
    return "loaded"


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    folders = sys.argv[1:]
    found = {}
    for folder in folders:
        (own,) = transformers.AutoConfig.from_pretrained(folder).architectures
        found[folder] = {way: outcome(way, folder) for way in (*WAYS, own)}
    assert not any(name.startswith("vtc.weights") for name in sys.modules)
    print(json.dumps(found))
