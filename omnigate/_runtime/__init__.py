"""What the package needs of an event loop beyond anyio."""
