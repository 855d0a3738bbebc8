"""Run by ``test_saving`` in a process of its own: load checkpoints as a user would, and tell what they answer.

``python elsewhere.py REQUESTS.json``: a list of ``{folder, prompt, import, out, again?}``. ``prompt``: a file of
tensors; ``import``: a module to import first, or ""; ``out``: where logits and generated tokens go; ``again``: where
the model is saved by transformers once more. Prints whether vtc was imported.
"""

import importlib
import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

torch.set_num_threads(1)


def main() -> None:
    for request in json.loads(Path(sys.argv[1]).read_text()):
        if request["import"]:
            importlib.import_module(request["import"])
        from transformers import AutoModelForImageTextToText

        model = AutoModelForImageTextToText.from_pretrained(request["folder"])
        prompt = load_file(request["prompt"])
        with torch.no_grad():
            logits = model(**prompt).logits
            tokens = model.generate(**prompt, max_new_tokens=4, do_sample=False)
        save_file({"logits": logits, "tokens": tokens}, request["out"])
        if again := request.get("again"):
            model.save_pretrained(again)
    print("vtc" in sys.modules)


if __name__ == "__main__":
    main()
