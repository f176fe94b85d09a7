"""The command line: one command with subcommands, and the Hydra entry point."""
