"""Sessions, passwords, sign-in limits, accounts."""
