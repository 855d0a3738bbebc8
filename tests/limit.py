"""A memory limit for a piece of work (Linux): an allocation beyond it fails, whatever the kernel does with pages."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

STATUS = Path("/proc/self/status")


@contextmanager
def at_most(mib: int) -> Iterator[None]:
    """Let the process map no more than ``mib`` MiB of private memory beyond what it has mapped now."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmData"))
    before = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (int(line.split()[1]) * 1024 + mib * 2**20, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, before)
