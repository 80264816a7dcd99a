"""The examples of docs/protocols.md print what it says. Probabilities may differ a little, so: the last line."""

import asyncio
import re
import sys

import pytest

from tests.support import PROJECT, serving

DOCUMENT = (PROJECT / "docs" / "protocols.md").read_text()
EXAMPLES = re.findall(
    r"\n## ([^\n]*)\n(?:(?!\n## ).)*?\n```python\n(.*?)```\n\n```text\n(.*?)```\n", DOCUMENT, re.DOTALL
)


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
