"""Pictures and texts from strangers: read safely, told apart."""
