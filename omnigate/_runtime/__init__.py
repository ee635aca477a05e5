"""Event-loop utilities that anyio does not provide."""
