"""Compile every Triton kernel ahead of time, without a GPU, and read its faults out of the binary.

    python scripts/check_kernels.py                   # everything, for sm_80 and sm_90
    python scripts/check_kernels.py --small           # the set that `make test` runs
    python scripts/check_kernels.py --arch 90 --amd   # one architecture, and the small set for gfx942

Faults: registers that spill (a stack, local loads or stores), shared memory beyond the chip's, a loop over tiles that
is not pipelined (no asynchronous copy), no load of a tile of 128 bits. Any fault, or a kernel that does not compile, is
exit code 1; a machine that can not compile is 2. Triton caches what it compiled. For gfx942 only a kernel that does not
compile is a fault: the kernels are not offered on ROCm (``dispatch``), and their tiles are not chosen for it.

A case is a dict that ``aot_cases(chip)`` of a ``vtc/kernels/*_triton.py`` lists:
    name        what the table calls it
    kernel      the ``@triton.jit`` function
    signature   argument -> "*bf16", "i32", "fp32", ...; pointers are taken to be aligned to 16 bytes
    constexprs  argument -> value
    options     num_warps, num_stages, ...
    aligned     optional: integers divisible by 16 (strides of rows)
    pipelined   optional: False = has no loop over tiles
    vector      optional: False = has no tiles to load
The small set is the first case of every kernel.
"""

from __future__ import annotations

import argparse
import importlib
import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

os.environ.pop("TRITON_INTERPRET", None)  # an interpreted function can not be compiled

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # the kernels of this checkout, not of a vtc that is installed from another
SHARED = {80: 163, 86: 99, 89: 99, 90: 227, 100: 227, 120: 99, "gfx942": 64}  # KiB a program may have

COLUMNS = ("registers", "spills", "shared", "copies", "vectors", "mma")
HEADER = f"{'chip':<7} {'kernel':<56} " + " ".join(f"{c:>9}" for c in (*COLUMNS, "seconds"))


def cases(small: bool, arch: int | str) -> Iterator[dict]:
    """The cases of every kernel file for this architecture."""
    for path in sorted((ROOT / "vtc" / "kernels").glob("*_triton.py")):
        module = importlib.import_module(f"vtc.kernels.{path.stem}")
        listed = module.aot_cases(arch if isinstance(arch, int) else 80) if hasattr(module, "aot_cases") else []
        firsts = {case["kernel"]: case for case in reversed(listed)}
        yield from firsts.values() if small else listed


def build(case: dict, arch: int | str):
    """The compiled kernel."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, constexprs = case["kernel"], case["constexprs"]
    names = list(kernel.arg_names)
    signature = {n: "constexpr" if n in constexprs else case["signature"][n] for n in names}
    aligned = {n for n in names if signature[n].startswith("*")} | set(case.get("aligned", ()))
    source = ASTSource(
        fn=kernel,
        signature=signature,
        constexprs={(names.index(n),): value for n, value in constexprs.items()},
        attrs={
            (names.index(n),): [["tt.divisibility", 16]] for n in sorted(aligned)
        },  # a set of another order would miss the cache
    )
    target = GPUTarget("cuda", arch, 32) if isinstance(arch, int) else GPUTarget("hip", arch, 64)
    return triton.compile(source, target=target, options={"enable_fp_fusion": True, **case["options"]})


def tool(name: str, *args: str) -> str:
    """What a disassembler of Triton's wheel prints."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    return subprocess.run([str(path), *args], capture_output=True, text=True, check=True).stdout


def read_cuda(compiled) -> dict:
    """Counts from the machine code."""
    with tempfile.TemporaryDirectory() as folder:
        path = str(Path(folder) / "kernel.cubin")
        Path(path).write_bytes(compiled.asm["cubin"])
        usage = dict(re.findall(r"(REG|STACK):(\d+)", tool("cuobjdump", "--dump-resource-usage", path)))
        code = tool("nvdisasm", "-c", path)

    def count(pattern: str) -> int:
        return len(re.findall(pattern, code))

    return dict(
        registers=int(usage["REG"]),
        spills=int(usage["STACK"]) + count(r"\b(?:STL|LDL)\b"),
        shared=compiled.metadata.shared,
        copies=count(r"\b(?:LDGSTS|UTMALDG|UBLKCP)\b"),
        vectors=count(r"\b(?:LDG|LDGSTS|STG)\.\S*128\b"),
        mma=count(r"\b(?:HMMA|HGMMA|WGMMA)\b"),
    )


def read_amd(compiled) -> dict:
    """The same from AMD's assembly, as far as it says; -1 = unknown."""
    text = compiled.asm["amdgcn"]

    def value(name: str) -> int:
        found = re.search(rf"\.{name}:\s*(\d+)", text)
        return int(found.group(1)) if found else 0

    spills = value("vgpr_spill_count") + value("private_segment_fixed_size")
    wide = len(re.findall(r"\b(?:global|buffer)_(?:load|store)_dwordx4\b", text))
    return dict(
        registers=value("vgpr_count"),
        spills=spills,
        shared=compiled.metadata.shared,
        copies=-1,
        vectors=wide,
        mma=len(re.findall(r"\bv_mfma", text)),
    )


def faults(case: dict, found: dict, arch: int | str) -> list[str]:
    """What is wrong with a compiled kernel."""
    limit = SHARED[arch] * 1024
    return [
        text
        for wrong, text in (
            (found["spills"] > 0, f"spills ({found['spills']})"),
            (found["shared"] > limit, f"{found['shared']} bytes of shared memory, the chip has {limit}"),
            (case.get("pipelined", True) and found["copies"] == 0, "a loop that is not pipelined"),
            (case.get("vector", True) and found["vectors"] == 0, "no 128-bit loads"),
        )
        if wrong
    ]


def check(case: dict, arch: int | str) -> bool:
    """Compile, print a line of the table; whether it is sound."""
    start = time.perf_counter()
    name = arch if isinstance(arch, str) else f"sm_{arch}"
    try:
        compiled = build(case, arch)
        found = read_cuda(compiled) if isinstance(arch, int) else read_amd(compiled)
    except Exception as error:  # the table goes on, and the exit code tells
        print(f"{name:<7} {case['name']:<56} FAULT: {type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return False
    wrong = faults(case, found, arch)
    cells = [found[column] for column in COLUMNS] + [round(time.perf_counter() - start, 1)]
    line = f"{name:<7} {case['name']:<56} " + " ".join(f"{cell:>9}" for cell in cells)
    offered = isinstance(arch, int)
    print(line + (f"  {'FAULT' if offered else 'note'}: {'; '.join(wrong)}" if wrong else ""), flush=True)
    return not (wrong and offered)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--arch", type=int, nargs="+", default=[80, 90], choices=[a for a in SHARED if a != "gfx942"])
    parser.add_argument("--small", action="store_true", help="the set of make test")
    parser.add_argument("--amd", action="store_true", help="the small set for gfx942 too (slow)")
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    args = parser.parse_args()
    try:
        tool("cuobjdump", "--version")
    except (ImportError, OSError) as error:
        print(f"Triton with its NVIDIA tools is needed ({error}); pip install 'triton>=3.6'", file=sys.stderr)
        return 2
    print(HEADER)
    start, results = time.perf_counter(), []
    for arch in [*args.arch, *(["gfx942"] if args.amd else [])]:
        for case in cases(args.small or arch == "gfx942", arch):
            if args.only in case["name"]:
                results.append(check(case, arch))
    print(f"{len(results)} compiled, {results.count(False)} faulty, {time.perf_counter() - start:.0f} s")
    return 0 if results and all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
