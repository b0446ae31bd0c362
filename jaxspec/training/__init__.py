"""Training of targets, drafters and denoisers: one state, one step, one loop."""
