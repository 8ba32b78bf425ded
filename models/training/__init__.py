"""Making models: datasets, labels, training loop, evaluation, export."""
