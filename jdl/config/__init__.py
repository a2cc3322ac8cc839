"""Reads experiment files, applies overrides by path, and describes fields for `--help`."""
