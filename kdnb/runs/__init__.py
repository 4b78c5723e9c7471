"""What a run is, which runs a study makes, and what a run leaves on disk."""
