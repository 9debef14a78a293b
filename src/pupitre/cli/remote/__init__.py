"""Commands that speak to a portal over its REST API."""
