"""How a compressed layer is stored and runs: ``linear`` holds a sum of ``terms``, whose codes lie on ``grids``, where
``sparsity`` says, as bytes of ``packing``; ``kernels`` are torch's own, where one fits.
"""
