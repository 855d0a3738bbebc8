"""Fine-tuned models as small differences from one base: ``delta`` makes one, ``folder`` saves it, ``several`` share a
model."""
