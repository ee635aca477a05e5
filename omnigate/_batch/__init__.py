"""Many calls, each of which ends in exactly one outcome."""
