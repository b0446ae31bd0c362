"""Training of targets and drafters: one state, one step, one loop."""
