"""An answer that is read while it arrives."""
