"""Compressed weights as files: transformers' own (``hf``), ``compressed_tensors``, ``gguf``, and the ``manifest``
beside them."""
