"""SQL engine: connections, transactions, statements, time limits."""
