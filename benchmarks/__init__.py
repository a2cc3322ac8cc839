"""What jdl's training costs, measured with the compiled steps that `jdl train` runs."""
