"""Where else tokens can be cut than in the decoder's rows: keys and values inside attention (``kv_reduction``), rows
that skip single layers (``token_routing``), blocks of the vision tower (``tower_merging``).
"""
