"""Database kinds: all that is special to one of them."""
