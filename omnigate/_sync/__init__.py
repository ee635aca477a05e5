"""Sync clients: the async ones, driven from any thread."""
