"""A minute against a running service: every endpoint and every dialect, as their clients use them. For `stt smoke`."""
