"""The command line: one command with subcommands, and Hydra's shell."""
