"""The version, which every saved file names, and the versions of transformers that vtc works with."""

__version__ = "0.1.0"
TRANSFORMERS = ">=5.8,<5.24"  # as in pyproject.toml


def fits(transformers: str) -> bool:
    """Whether vtc works with this version of transformers."""
    from packaging.specifiers import SpecifierSet

    return SpecifierSet(TRANSFORMERS).contains(transformers, prereleases=True)
