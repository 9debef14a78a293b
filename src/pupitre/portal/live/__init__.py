"""Live data: change feed, caches, batched reads."""
