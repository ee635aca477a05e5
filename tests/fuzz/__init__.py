"""Coverage-guided fuzzing of what reads bytes from the wire; see README.md."""
