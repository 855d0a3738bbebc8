"""The version, which every saved file names."""

__version__ = "0.1.0"
