"""Tools for asyncio programs: batches, notifiers, clocks, logs, time limits, workers."""
