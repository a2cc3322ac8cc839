"""Trains an experiment: data, compiled steps, loop, run directory and interruption of one run."""
