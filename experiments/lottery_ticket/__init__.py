"""The lottery ticket hypothesis (Frankle & Carbin, 2018)."""
