"""People: names, passwords, roles, sign-ins."""
