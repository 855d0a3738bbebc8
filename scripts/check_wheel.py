"""Build the sdist and, from it, the wheel; install the wheel in a new environment, and run it from another folder.

    python scripts/check_wheel.py    # `make test-wheel`; fetches setuptools for the isolated build, and nothing else

The new environment takes vtc's dependencies from the one that runs this script, and vtc from the wheel alone.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
DEMO = ("demo", "--questions", "9", "--methods", "divprune+share", "--budgets", "24", "--output", "out")
INSTALLED = """
import sys
from importlib.metadata import distribution
from pathlib import Path
import vtc
from vtc.eval import scenes
root, names = Path(vtc.__file__).parent, [str(file) for file in distribution("vtc-vlm").files]
assert root.is_relative_to(sys.prefix), f"{root} is not in the new environment {sys.prefix}"
for name in ("py.typed", "eval/scenes/checkpoint/model.safetensors", "eval/scenes/checkpoint_qwen/model.safetensors"):
    assert (root / name).is_file(), f"{name} is not in the wheel"
for name in ("LICENSE", "NOTICE"):
    assert any(f"dist-info/licenses/{name}" in file for file in names), f"{name} is not in the wheel"
assert Path(scenes.checkpoint_path()).is_relative_to(root)
print(f"{len(names)} files, of which vtc {vtc.__version__} in the new environment")
"""


def run(*command: object, cwd: Path = ROOT) -> None:
    print(
        "+", *(Path(str(part)).name if os.sep in str(part) else str(part)[:40].strip() for part in command), flush=True
    )
    subprocess.run([str(part) for part in command], cwd=cwd, check=True, env=environment())


def environment() -> dict[str, str]:
    """Without what would let the checkout be found."""
    return {key: value for key, value in os.environ.items() if key not in ("PYTHONPATH", "PYTHONHOME", "VIRTUAL_ENV")}


def build(out: Path) -> Path:
    """The wheel, made of the sdist."""
    run(sys.executable, "-m", "build", "--outdir", out, ROOT)
    (wheel,) = out.glob("vtc_vlm-*.whl")
    (_,) = out.glob("vtc_vlm-*.tar.gz")
    return wheel


def installed(wheel: Path, home: Path) -> Path:
    """The folder of programs of a new environment that has the wheel."""
    venv.create(home, with_pip=True)
    programs = home / ("Scripts" if os.name == "nt" else "bin")
    paths = sysconfig.get_paths(vars={"base": str(home), "platbase": str(home)})
    Path(paths["purelib"], "dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    run(programs / "python", "-m", "pip", "install", "--quiet", "--no-deps", "--ignore-installed", wheel)
    return programs


def main() -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name).resolve()
        programs = installed(build(folder / "dist"), folder / "env")
        elsewhere = folder / "elsewhere"
        elsewhere.mkdir()
        assert not elsewhere.is_relative_to(ROOT), f"{elsewhere} is inside {ROOT}; set TMPDIR to a folder outside"
        run(programs / "python", "-c", INSTALLED, cwd=elsewhere)
        run(programs / "vtc", "--help", cwd=elsewhere)
        run(programs / "vtc", *DEMO, cwd=elsewhere)
        assert (elsewhere / "out" / "table.md").is_file(), "vtc demo left no table"
    print("The wheel runs from another folder.")


if __name__ == "__main__":
    main()
