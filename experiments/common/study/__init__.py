"""What makes a study: its command line, its folder, its resumable training."""
