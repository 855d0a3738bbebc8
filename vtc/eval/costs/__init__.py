"""What a cell costs, measured in turns with the unpatched model (``turns``): ``timing``, ``memory``, ``energy``,
``flops``; ``measure`` asks for all of them.
"""
