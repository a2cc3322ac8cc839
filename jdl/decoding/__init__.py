"""Tokens from a model, one after the other: drawn, or searched for. Pure functions."""
