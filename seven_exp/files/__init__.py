"""Files that are whole or not there, locks between processes, and checksums."""
