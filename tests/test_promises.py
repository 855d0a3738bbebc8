"""What SECURITY.md promises, looked for in every file: no code out of folders, no connection of our own."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "vtc").rglob("*.py")), *sorted((ROOT / "scripts").rglob("*.py"))]
NETWORK = {
    *("socket", "ssl", "http", "urllib", "ftplib", "smtplib", "requests", "httpx", "aiohttp", "urllib3", "websockets"),
}
PICKLES = {"pickle", "marshal", "shelve", "dill", "cloudpickle", "joblib"}
SAFE = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}  # np.load: its default
FORBIDDEN = {"eval", "exec", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system"}


def broken(source: str) -> list[str]:
    """What in a source breaks a promise."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        else:
            names = [str(node.module)] if isinstance(node, ast.ImportFrom) else []
        found += [f"imports {name}" for name in names if name.split(".")[0] in NETWORK | PICKLES]
        if isinstance(node, ast.Call):
            name, given = ast.unparse(node.func), {k.arg: k.value for k in node.keywords}
            option, wanted = SAFE.get(name, ("", None))
            value = getattr(given.get(option), "value", False if name == "np.load" else None)
            code = given.get("trust_remote_code")
            found += [f"calls {name}"] if name in FORBIDDEN else []
            found += [f"calls {name} without {option}={wanted}"] if name in SAFE and value != wanted else []
            asks = re.fullmatch(r"Auto\w+\.from_pretrained", name) and not {"trust_remote_code", None} & set(given)
            found += ["runs remote code"] if code is not None and getattr(code, "value", None) is not False else []
            found += [f"calls {name} without trust_remote_code=False"] if asks else []  # it would ask on a terminal
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_breaks_a_promise(path):
    assert broken(path.read_text(encoding="utf-8")) == []


def test_the_check_sees_what_it_should():
    """The negative control."""
    for bad in (
        "import pickle",
        "from urllib.request import urlopen",
        "eval(text)",
        "yaml.load(text)",
        "torch.load(f)",
    ):
        assert broken(bad), bad
    assert broken("torch.load(f, weights_only=False)") and broken("np.load(f, allow_pickle=True)")
    assert broken("Auto.from_pretrained(name, trust_remote_code=True)") and broken("AutoModel.from_pretrained(name)")
    assert not broken("torch.load(f, weights_only=True)\nnp.load(f)\nmodel.eval()\nf(x, trust_remote_code=False)")
    assert not broken("AutoModel.from_pretrained(name, **safe)")
