"""What methods look at, captured while the model runs: hooks on attention, and what each signal makes of them."""
