"""What is changed on one model. ``api``: the public verbs; ``patch``: every change, and its undo; ``timm_vit``: the
same for plain ViTs; ``calibration``: options of a method that are found on a model's own prompts.
"""
