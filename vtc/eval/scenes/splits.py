"""Scene seeds of the three splits, fenced apart."""

SPLITS: dict[str, range] = {
    "train": range(0, 10_000_000),
    "dev": range(20_000_000, 21_000_000),
    "test": range(30_000_000, 31_000_000),
}
