"""Published results about sparse networks, one file each; run them with `python -m`."""
