"""Coverage-guided fuzzing of the code that reads bytes from the wire; see README.md."""
