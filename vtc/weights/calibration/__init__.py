"""What passes must know of a model, from a few prompts: ``block_walk`` runs it block by block, ``token_weighting``
weighs vision against text tokens, ``channel_statistics`` and ``sensitivity`` sum up what they need.
"""
