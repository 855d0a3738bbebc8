"""What a run knows. Answers are lines (``json_lines``) of an append-only file (``journal``); one pass over them gives
each cell's figures (``summary``, ``statistics``, ``beyond_accuracy``), a few bytes a question (``replies``).
"""
