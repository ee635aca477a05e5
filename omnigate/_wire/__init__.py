"""The gateway's protocol as values and checks, without I/O or a clock."""
