"""Buckets of histograms, in seconds: they fit frames of 80 ms, and models that speak after 0.5 and 2.5 s."""

STAGES = (
    0.00025, 0.0005, 0.001, 0.002, 0.004, 0.008, 0.012, 0.016, 0.02, 0.03, 0.04, 0.05, 0.06, 0.07, 0.08,
    0.12, 0.16, 0.24, 0.4, 0.8, 1.6,
)  # fmt: skip
"""Stages of a frame's way: dense where a step of the model must stay, below 0.08 s."""

WORDS = (0.08, 0.16, 0.24, 0.32, 0.4, 0.48, 0.56, 0.64, 0.72, 0.8, 0.96, 1.2, 1.6, 2.4, 3.2, 4.8, 8.0)
"""To a token or a word: multiples of a frame around the models' delays."""

SLOTS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.16, 0.32, 0.64, 1.0, 2.5, 5.0)
"""To a slot: some milliseconds when one is free, some hundred when another session must end first."""

RESULTS = (0.005, 0.01, 0.02, 0.03, 0.04, 0.06, 0.08, 0.12, 0.16, 0.24, 0.4, 0.8, 1.6, 5.0)
"""From a frame to its result: beyond 0.08 s streams fall behind."""

SESSIONS = (0.16, 2.0, 10.0, 20.0, 40.0, 60.0, 90.0, 120.0, 180.0, 240.0, 360.0, 600.0, 1800.0, 3600.0)
"""Length of a session: up to 360 those of moshi-server, whose steps are 0.08 s."""

CHUNKS = (0.1, 0.2, 0.4, 0.8, 1.2, 1.6, 2.4, 3.2, 4.8, 8.0, 16.0, 32.0, 64.0, 300.0)
"""From a chunk of a device's audio to its transcript: the next chunk brings out the last words of the one before."""

STREAMS = (1, 2, 4, 8, 16, 32, 64, 96, 128, 192, 256, 384, 512, 768, 1024, 2048)
"""Not seconds: streams in one step."""
