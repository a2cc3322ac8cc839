"""Counts, predicts and measures costs; reproduces recorded runs."""
