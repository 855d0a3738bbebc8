"""The commands of ``vtc``, a file each. Heavy imports stand inside the functions: ``vtc --help`` needs no torch."""
