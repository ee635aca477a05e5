"""The commands, one module each. `_frame.app` lists them, and imports one when it is run."""
