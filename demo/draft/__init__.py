"""An EAGLE3 draft for the demo model: one layer that guesses what the model will say next."""
