"""The engine's speed: ours and moshi's own batched stepping, on the same weights, in turns, in one process.

    python -m loadtest.engine --streams 1,8,32
    python -m loadtest.engine --model stt-1b-en_fr --random-weights --device cuda --streams 64,256,512 --save

Neither Ray nor a running service takes part. While both are measured their tokens are compared.
"""

from serve_app.openmp import wait_without_spinning

wait_without_spinning()  # both sides, as the service's engine does
