"""One question to one model: load it (``load``), make prompts and greedy answers (``generate``) in batches that need
little padding (``batches``), note how sure it was (``confidence``); the same on spoiled pictures (``corruptions``).
"""
