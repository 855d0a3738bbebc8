"""The most memory this process ever held, counted from a chosen moment (Linux)."""

from pathlib import Path

STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def forget_peak() -> int:
    """Start counting anew; MiB held now. Without this an import's passing peak hides whatever stays below it."""
    CLEAR.write_text("5")
    return peak_mib()


def peak_mib() -> int:
    """The most MiB held since then."""
    line = next(line for line in STATUS.read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) // 1024
