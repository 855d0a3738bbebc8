"""The rules of the house: who may import whom, what an import may cost, and a checkout that shadows nobody."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "vtc").rglob("*.py"))
# Each part may import the parts after it, never the ones before.
ORDER = ("cli", "integrations", "eval", "weights", "patching", "engine", "methods", "kernels", "tokens")
PARTS = {
    "cli": ("cli", "commands", "__main__", "doctor"),
    "integrations": ("integrations",),
    "eval": ("eval", "training"),
    "weights": ("weights", "checkpoint", "adapter", "peft_adapter", "card", "verification"),
    "patching": ("patching", "changes", "vit", "calibration"),
    "engine": (
        "engine",
        "arguments",
        "hearing",
        "merging",
        "tower",
        "stages",
        "attend",
        "keys",
        "routing",
        "listener",
        "raters",
        "state",
        "layout",
        "taps",
        "reporting",
        "schedule",
    ),
    "methods": ("methods", "models", "signals", "share", "spend", "cache", "gates", "masks", "rows", "groups", "units"),
    "kernels": ("kernels", "merge"),
    "tokens": ("tokens", "registry", "errors", "folders", "pages"),
}
PART = {module: part for part, modules in PARTS.items() for module in modules}
TRANSFORMERS = {
    "models",
    "engine",
    "cache",
    "taps",
    "patching",
    "checkpoint",
    "weights",
    "eval",
    "cli",
    "doctor",
    "training",
}


def imports(path: Path) -> list[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    hidden = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(x) for n in hidden for x in ast.walk(n)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = [f"{node.module}.{alias.name}" for alias in node.names]
            found += names if node.module == "vtc" else [node.module]
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_point_one_way(path):
    part = path.relative_to(ROOT / "vtc").parts[0].removesuffix(".py")
    if part == "__init__":
        return
    own = ORDER.index(PART[part])
    for name in imports(path):
        if name.startswith("vtc."):
            other = name.split(".")[1]
            if other in PART:
                assert ORDER.index(PART[other]) >= own, f"{path.name} imports vtc.{other}, which stands above it"
        if name.split(".")[0] == "transformers":
            assert part in TRANSFORMERS or path.name == "hf.py", f"{path.name} touches transformers"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_assert_pickle_or_remote_code(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)], "user errors are raised, not asserted"
    assert "trust_remote_code=True" not in text
    assert not {"pickle", "marshal", "shelve"} & set(imports(path))


def run(code: str, **kwargs) -> str:
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, **kwargs)
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_importing_vtc_imports_nothing_heavy():
    heavy = ("torch", "transformers", "peft", "datasets", "matplotlib", "pandas", "numpy", "PIL", "triton")
    assert run(f"import sys, vtc; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"
    heavy = ("peft", "datasets", "matplotlib", "pandas", "triton")
    code = f"import sys, vtc; vtc.patch; vtc.methods.FastV; print([m for m in {heavy} if m in sys.modules])"
    assert "peft" not in run(code) and "matplotlib" not in run(code)


def test_transformers_imports_from_a_checkout():
    """A root package called ``kernels`` would shadow Hugging Face's and break this very import."""
    assert run("from transformers import LlavaForConditionalGeneration; print('ok')", cwd=ROOT).strip() == "ok"


def test_every_module_says_what_it_is():
    assert [
        str(p.relative_to(ROOT)) for p in FILES if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))
    ] == []
