"""The `stt` command."""
