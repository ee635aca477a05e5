"""The same clients for sync code, from any thread."""
