"""Recording: curricula, the training loop that measures, and the store."""
