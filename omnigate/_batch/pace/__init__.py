"""Pacing (when a batch may send) and adaptive concurrency (how many calls may be in flight)."""
