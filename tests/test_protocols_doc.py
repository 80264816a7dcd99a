"""The examples of docs/protocols.md print what it says. Probabilities may differ a little, so: the last line.

Those for Ray programs need Ray: `tests/system/test_ray_programs.py` runs them.
"""

import asyncio
import re
import sys

import pytest

from tests.support import PROJECT, serving

DOCUMENT = (PROJECT / "docs" / "protocols.md").read_text()
ALL_EXAMPLES = re.findall(
    r"\n## ([^\n]*)\n(?:(?!\n## ).)*?\n```python\n(.*?)```\n\n```text\n(.*?)```\n", DOCUMENT, re.DOTALL
)
RAY_EXAMPLES = [example for example in ALL_EXAMPLES if example[0].startswith("Ray programs")]
EXAMPLES = [example for example in ALL_EXAMPLES if example not in RAY_EXAMPLES]


def test_there_are_examples():
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize(("title", "program", "printed"), EXAMPLES, ids=[title for title, *_ in EXAMPLES])
async def test_an_example_prints_what_the_document_says(engines, title, program, printed):
    async with serving(engines) as service:
        example = await asyncio.create_subprocess_exec(
            sys.executable, "-c", program.replace("127.0.0.1:8000", f"127.0.0.1:{service.port}"),
            cwd=PROJECT, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        output, _ = await example.communicate()
        await service.wait_until_empty()
    assert output.decode().splitlines()[-1] == printed.splitlines()[-1], output.decode()
