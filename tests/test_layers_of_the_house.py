"""The rules of the house: who may import whom, what an import may cost, and a checkout that shadows nobody."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "vtc").rglob("*.py"))
# The rooms from the top down: a file may import from its own room and from those below it. The longest match counts.
ORDER = (
    ("commands", "cli", "__main__", "doctor"),
    ("integrations", "training"),
    ("eval.studies",),
    ("eval.running",),
    ("eval.report",),
    ("eval.costs",),
    ("eval.results",),
    ("eval.asking",),
    ("eval.benchmarks", "eval.scenes"),
    ("eval.data",),
    ("eval", "eval.metrics"),
    ("checkpoint",),
    ("weights.planning", "weights.deltas", "weights.healing"),
    ("weights",),
    ("weights.passes",),
    ("weights.calibration",),
    ("weights.formats",),
    ("weights.structure",),
    ("weights.lossless",),
    ("weights.fitting",),
    ("weights.codec",),
    ("patching",),
    ("engine",),
    ("models",),
    ("towers",),
    ("methods",),
    ("budget",),
    ("signals",),
    ("tokens", "registry", "pages"),
    ("files",),
    ("kernels", "errors", "version"),
)
FACES = ("vtc", "vtc.weights")  # hand on the public names of the rooms below, on first use
LARGEST = 300  # lines of a file
TRANSFORMERS = (
    "models",
    "engine",
    "patching",
    "checkpoint",
    "weights",
    "eval",
    "training",
    "commands",
    "doctor",
    "files",
)


def module_of(path: Path, root: Path = ROOT) -> str:
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def floor(module: str) -> int:
    """How far down the house a module stands; raises for one that no room has."""
    name = module.removeprefix("vtc.")
    found = [
        (len(room), level)
        for level, rooms in enumerate(ORDER)
        for room in rooms
        if name == room or name.startswith(room + ".")
    ]
    assert found, f"{module} stands in no room of ORDER"
    return max(found)[1]


def imports(source: str, known: set[str]) -> list[str]:
    """The modules a source imports, anywhere in it, but for types alone; of vtc the file that is meant."""
    tree = ast.parse(source)
    hidden = [n for n in ast.walk(tree) if isinstance(n, ast.If) and "TYPE_CHECKING" in ast.unparse(n.test)]
    skipped = {id(x) for n in hidden for x in ast.walk(n)}
    found = []
    for node in ast.walk(tree):
        if id(node) in skipped:
            continue
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are written out in full"
            whole = [f"{node.module}.{alias.name}" for alias in node.names]
            found += [name if name in known else str(node.module) for name in whole]
    return found


def house(files: dict[str, str]) -> dict[str, list[str]]:
    """Module -> modules of vtc that it imports, of sources by module."""
    return {
        module: sorted({name for name in imports(source, set(files)) if name in files and name != module})
        for module, source in files.items()
    }


def running_up(arrows: dict[str, list[str]]) -> list[str]:
    return [
        f"{module} imports {name}, which stands above it"
        for module, names in arrows.items()
        if module not in FACES
        for name in names
        if name not in FACES and floor(name) < floor(module)
    ]


def circles(arrows: dict[str, list[str]]) -> list[list[str]]:
    """Files that import each other in a loop. A package's face that imports its own files is no loop: who asks for a
    file of a package asks for the face first."""
    arrows = {m: [n for n in names if not m.startswith(n + ".")] for m, names in arrows.items()}
    found, done = [], set()

    def walk(module: str, way: list[str]) -> None:
        if module in way:
            found.append(way[way.index(module) :] + [module])
        elif module not in done:
            for name in arrows[module]:
                walk(name, [*way, module])
            done.add(module)

    for module in arrows:
        walk(module, [])
    return found


SOURCES = {module_of(path): path.read_text(encoding="utf-8") for path in FILES}
ARROWS = house(SOURCES)


def test_imports_point_one_way():
    names = {name for source in SOURCES.values() for name in imports(source, set(SOURCES))}
    assert {name for name in names if name.split(".")[0] == "vtc"} <= set(SOURCES), "an import of what is not there"
    assert running_up(ARROWS) == []


def test_no_circle_of_files():
    assert circles(ARROWS) == []


def test_the_checks_see_what_they_should():
    """The negative control: an import that runs up, and a circle, put into the house."""
    up = {**SOURCES, "vtc.kernels.match": "def late():\n    from vtc.engine import forward\n"}
    assert running_up(house(up)) == ["vtc.kernels.match imports vtc.engine.forward, which stands above it"]
    loop = {
        **SOURCES,
        "vtc.kernels.match": "from vtc.kernels import merge",
        "vtc.kernels.merge": "import vtc.kernels.match",
    }
    assert circles(house(loop)) == [["vtc.kernels.match", "vtc.kernels.merge", "vtc.kernels.match"]]
    hidden = {**SOURCES, "vtc.kernels.match": "if TYPE_CHECKING:\n    from vtc.engine import forward\n"}
    assert running_up(house(hidden)) == []


def test_who_touches_transformers():
    touching = {
        m for m, source in SOURCES.items() if "transformers" in {n.split(".")[0] for n in imports(source, set())}
    }
    assert [m for m in sorted(touching) if m.split(".")[1] not in TRANSFORMERS] == []


def test_rooms_are_small_and_say_what_they_are():
    """A dozen files at the root, 300 lines a file, about 15 files a room (plug-ins, a file each, are as many as there
    are), and three lines that say what lives there and which way data goes."""
    plugins = {"methods", "models", "benchmarks", "passes", "kernels"}
    assert len(list((ROOT / "vtc").glob("*.py"))) <= 12
    assert [m for m, source in SOURCES.items() if source.count("\n") > LARGEST] == []
    for room in {path.parent for path in FILES}:
        assert len(list(room.glob("*.py"))) <= 16 or room.name in plugins, f"{room.name} holds too much"


@pytest.mark.parametrize("path", FILES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_assert_pickle_or_remote_code(path):
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert not [n.lineno for n in ast.walk(tree) if isinstance(n, ast.Assert)], "user errors are raised, not asserted"
    assert "trust_remote_code=True" not in text
    assert not {"pickle", "marshal", "shelve"} & set(imports(text, set()))


def run(code: str, **kwargs) -> str:
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, **kwargs)
    assert out.returncode == 0, out.stderr
    return out.stdout


def test_importing_vtc_imports_nothing_heavy():
    heavy = ("torch", "transformers", "peft", "datasets", "matplotlib", "pandas", "numpy", "PIL", "triton")
    assert run(f"import sys, vtc; print([m for m in {heavy} if m in sys.modules])").strip() == "[]"
    heavy = ("peft", "datasets", "matplotlib", "pandas", "triton")
    code = f"import sys, vtc; vtc.patch; vtc.methods.FastV; print([m for m in {heavy} if m in sys.modules])"
    assert "peft" not in run(code) and "matplotlib" not in run(code)


def test_faces_tell_what_they_have():
    """What a person sees by ``dir``: names that are loaded on first use, and those that are there already."""
    import vtc
    import vtc.methods
    import vtc.signals
    import vtc.weights

    for face, names in (
        (vtc, ("patch", "methods", "__version__")),
        (vtc.weights, ("compress", "gguf", "incrementally")),
        (vtc.methods, ("FastV", "Method", "register")),
        (vtc.signals, ("TextAttention", "Signal", "register")),
    ):
        assert set(names) <= set(dir(face)) and all(hasattr(face, name) for name in names)


def test_transformers_imports_from_a_checkout():
    """A root package called ``kernels`` would shadow Hugging Face's and break this very import."""
    assert run("from transformers import LlavaForConditionalGeneration; print('ok')", cwd=ROOT).strip() == "ok"


def test_every_module_says_what_it_is():
    assert [
        str(p.relative_to(ROOT)) for p in FILES if not ast.get_docstring(ast.parse(p.read_text(encoding="utf-8")))
    ] == []
