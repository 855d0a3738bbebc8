"""One forward with fewer tokens. ``placeholders`` finds the pictures, ``stages`` asks the method and makes rows of its
answer, ``forward`` runs each decoder layer on them with the arguments, masks, attention and cache of those rows;
``report`` tells. Other sites: ``kv_reduction`` (keys inside attention), ``token_routing`` (rows that skip a layer),
``tower_merging``.
"""
