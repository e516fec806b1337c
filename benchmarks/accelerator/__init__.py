"""A queue of measurements for an accelerator that is at hand for minutes at a time."""
