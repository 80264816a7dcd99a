"""The bridge between Kafka and the service, as a process of its own beside a running service.

LOOM_KAFKA_BOOTSTRAP_SERVERS=kafka:9092 python -m serve_app.bridges.kafka [--url ws://127.0.0.1:8000]

Settings come from the environment (`LOOM_KAFKA_…` and `SESSION_GAP_SECONDS`, see `serve_app.settings.ENVIRONMENT`)
and from `--config FILE`, a Serve config file with a group `kafka`. `--url` wins over both (`kafka.service_url`).
`GET /healthz`, `/readyz` (503 until brokers and service answer) and `/metrics` are answered at `--host` and `--port`,
else LOOM_HOST and LOOM_PORT, else 127.0.0.1:8002; `--port 0` takes any free one.

The log (stderr, one JSON object per line) says `bridge is listening` with the `port`, `partitions assigned` and
`partitions revoked`. SIGTERM and SIGINT let the transaction in flight end, give the partitions back and exit with 0;
SIGKILL at any moment costs nothing but time: whoever takes the partitions over goes on where the last transaction was.
Exit status 2: the settings are wrong.
"""
