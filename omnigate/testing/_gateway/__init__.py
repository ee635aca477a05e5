"""The inside of the local gateway."""
