"""Streaming speech-to-text with Kyutai's delayed-streams models on Ray Serve."""
