"""One file a family of vLLM's models, or two of a kind: where the tokens of its pictures stand. What they share is in
``model.Reducing``."""
