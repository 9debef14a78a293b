"""Keys and certificates: the authority, what it issues, signatures."""
