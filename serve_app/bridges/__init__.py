"""Bridges between the service and systems that are no clients of it: Kafka."""
