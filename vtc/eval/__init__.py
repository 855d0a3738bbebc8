"""What fewer tokens cost; ``vtc eval`` is the way in. Questions (``benchmarks``, ``scenes``, ``data``) are asked
(``asking``) of every cell (``cells``), answers become lines and figures (``results``, scored by ``metrics``), costs are
measured (``costs``), tables and pictures made of both (``report``); ``running`` goes through it all, ``studies`` ask
other things.
"""
