"""Training that makes up for what compression took: ``distill`` from the original, ``incremental`` steps, ``qat``."""
