"""Training of the checkpoint that ships with the scenes; only `scripts/train_scenes.py` needs it."""
