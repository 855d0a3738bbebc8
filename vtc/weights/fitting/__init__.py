"""The mathematics of making weights smaller, as pure functions of a weight and its inputs' ``gram`` matrix: the column
``sweep`` of GPTQ and SparseGPT, ``lowrank``, ``masks``.
"""
