"""Merging inside a vision tower. A block (``blocks``) runs on groups of tokens (``groups``) of single tokens or of
units of patches (``units``), merges some more between attention and MLP, and hands on states of full length
(``merging``).
"""
