"""Other questions than "how accurate": two runs compared, layers that need the picture, one picture shown, the demo."""
