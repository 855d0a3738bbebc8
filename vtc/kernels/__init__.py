"""One operation a file: a torch reference that says what is computed, and (where it pays) a Triton kernel beside it."""
