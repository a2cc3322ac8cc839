"""The `jdl` command line: parsing, subcommands, help."""
