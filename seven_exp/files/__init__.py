"""Atomic files, locks between processes, and checksums."""
