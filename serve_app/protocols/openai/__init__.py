"""OpenAI's API: `POST /v1/audio/transcriptions`, `WS /v1/realtime`, `GET /v1/models`."""
