"""The databases: functions that take and return domain values. No ORM, no SQL elsewhere."""
