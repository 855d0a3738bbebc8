"""What methods look at, captured while the model runs. ``install`` puts hooks (``attention_hook``) where signals ask
for them; ``tower`` and ``decoder`` keep what a signal captures of each call; ``stage_view`` is what the signal then
reads from.
"""
