"""What the gateway speaks, as values and checks: no I/O, no clock."""
