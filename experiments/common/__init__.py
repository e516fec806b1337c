"""What all experiments share: data, models, training, reports."""
