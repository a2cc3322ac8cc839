"""Benchmarks of jdl's training, on the compiled steps that `jdl train` runs."""
