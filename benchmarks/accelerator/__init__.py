"""A queue of measurements for an accelerator that is available for minutes at a time."""
