"""Prediction, text generation, translation and export with a trained run."""
