"""A folder on disk, saved and loaded strictly. ``save_load`` writes weights, then what the method ``learned`` and
adapters of ``peft``, tells of them in ``config`` and ``card``, checks the copy (``verify``), and keeps what ``restore``
goes back to.
"""
