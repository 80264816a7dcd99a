"""Measuring a service as its users see it: how soon and how well it hears. For `stt latency` and `loadtest/`."""
