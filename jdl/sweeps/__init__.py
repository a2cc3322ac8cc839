"""Trains several runs: seeds, vectorized runs, hyperparameter search."""
