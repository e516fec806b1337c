"""The compiled training loop, what it trains and what it measures."""
