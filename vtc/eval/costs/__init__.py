"""What a cell costs, measured in turns with the unpatched model (``interleaved``): ``timing``, ``memory``, ``energy``,
``flops``; ``measure`` asks for all of them.
"""
