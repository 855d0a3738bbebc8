"""Checkpoints in fewer bytes, every bit kept: an ``archive`` with a checked ``index``, whose tensors are ``planes`` or
``differences`` from what compressed weights make of them (``approximate``).
"""
