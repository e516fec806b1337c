"""Published results about sparse networks, one package each; run them with `python -m`."""
