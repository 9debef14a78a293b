"""The agent on a VM server: guests, overlays, consoles. Never touches a database of the web."""
