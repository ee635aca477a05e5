"""Batches: many calls, exactly one outcome for each."""
