"""Child processes: start, restart, notify, output, ports."""
