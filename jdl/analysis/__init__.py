"""Counts FLOPs and memory, suggests learning rates and batch sizes, reproduces recorded runs."""
