"""Attention over some rows and columns: ``masks`` says which and with what weight, ``attend`` computes it, ``gates``
learn which keys are worth keeping.
"""
