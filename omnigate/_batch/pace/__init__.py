"""How fast a batch sends, and how many calls are in flight."""
