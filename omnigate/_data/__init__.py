"""Rows of data: read from files and frames, and written to them. Knows nothing of calls and batches."""
