"""How a run is trained: the networks and losses it starts from, one step, the loop."""
