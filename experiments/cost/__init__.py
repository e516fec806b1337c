"""What accuracy costs: every method compared by wall-clock time and by FLOPs."""
