"""Streamed responses, read as they arrive."""
