"""Programs that measure a running service, and parts of it."""
