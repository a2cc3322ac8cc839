"""Trains one experiment: data, compiled steps, the loop, the run directory, interruption."""
