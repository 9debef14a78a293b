"""Pure values, state tables and decisions. No I/O, no clock, no randomness here."""
