"""Comparison of records: table, statistics, plot, HTML. It reads folders, not processes."""
