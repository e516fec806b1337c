"""The compiled training loop, what it trains with and what it measures."""
