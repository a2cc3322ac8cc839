"""Uses a trained run: prediction, text generation, translation, export."""
