"""From samples to a trained model and a report."""
