"""The proof that it survives; see `tests/README.md`."""
