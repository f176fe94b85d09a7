"""Records -> table, statistics, plot, HTML. Reads folders, never processes."""
