"""What accuracy costs: every method against wall-clock time and against FLOPs."""
