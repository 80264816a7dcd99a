"""A service without Ray in a process of its own, which can be killed: `python -m tests.kafka.service PORT`."""

import asyncio
import sys

from serve_app import settings as settings_module
from serve_app.engine.loading import load_model
from tests.support import running_engines, serving

SLOTS = 12


async def main(port: int) -> None:
    """Serve the demo model until the process is ended."""
    settings = settings_module.from_args({"engine": {"slots": SLOTS, "torch_threads": 1}}, environ={})
    async with running_engines(load_model(settings)) as engines, serving(engines, port=port):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(main(int(sys.argv[1])))
