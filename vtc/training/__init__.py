"""Fine-tuning through a patch: losses, data, what is trained, and a loop over transformers' Trainer."""
