"""What a study needs: its command line, its folder, its resumable training."""
