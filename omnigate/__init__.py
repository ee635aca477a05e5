"""omnigate."""
