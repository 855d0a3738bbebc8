"""One forward with fewer tokens. ``placeholders`` finds the pictures, ``stage_placement`` where stages stand,
``stages`` asks the method and makes rows of its answer; ``forward`` runs each decoder layer (``layers``) on them, with
the ``attention``, the arguments and the ``kv_cache`` of those rows; ``capture`` keeps what methods look at, ``sites``
are the other places to cut, ``report`` tells what was done.
"""
