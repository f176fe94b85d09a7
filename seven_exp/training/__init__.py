"""Training, evaluation, and what is counted along the way."""
