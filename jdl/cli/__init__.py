"""The `jdl` command."""
