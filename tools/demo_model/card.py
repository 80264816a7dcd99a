"""The model card, README.md beside the checkpoint."""

from pathlib import Path

from tools.demo_model import recipe
from tools.demo_model.evaluate import Results
from tools.demo_model.report import FOLDER

_CARD = """# The demo model

A speech-to-text model in the official format of Kyutai's streaming models that knows {words} words. It is here so that
everything in this repository (loading, batching, word times, turn ends, moving a session to another machine) runs and
is tested anywhere, without a GPU and without a download. It proves the machinery, and nothing else: for real speech use
`kyutai/stt-1b-en_fr` or `kyutai/stt-2.6b-en`.

## What it knows
English: {english}.

French: {french}; "six" is spelled alike in both.

Spoken by espeak-ng, and by nobody else: all of its training and test speech is synthetic, and there is no measurement
on human voices. The voices it is meant for: {voices}.

## How good it is
Word error rate, on synthetic speech at rates and pitches never trained on, in noise of -60 to -40 dB:

| voices | words | word error rate |
| --- | --- | --- |
{table}

[The report]({folder}/README.md) tells the rest: times, pauses, silence, noise, drift, and what is confused with what.
`make demo-model-report` makes it again.

## Files
| file | what |
| --- | --- |
| `config.json`, `model.safetensors` | language model: width 128, 4 layers, context 8 s, delay 0.5 s, 4 pause heads |
| `mimi_config.json`, `mimi.safetensors` | a small Mimi: 8 codebooks of 256, context 2 s; the decoder half is zero |
| `tokenizer.model` | sentencepiece, one piece per word; 0 ends padding, 3 is padding, as in Kyutai's models |

## How it was made
`make demo-model`: from scratch, none of Kyutai's weights, nothing but espeak-ng and a seed. The first convolutions of
the codec are a fixed bank of Gabor filters; the rest learned to tell the parts of words, and the loudness of the bands,
through its own quantizer. Then the language model learned, from speech the codec had never heard, to write each word
half a second behind its start, and its pause heads to tell how long nobody has spoken.

## What it cannot do
- Any word outside its list (it writes the likeliest of its own, or nothing), probably any human voice, any other
  language.
- Robots, whisperers and other odd variants of espeak-ng fail even on known words.
- Words that run into each other are harder for it than words with small pauses.
"""


def write(results: Results, checkpoint: Path) -> None:
    """Write the card of a checkpoint."""
    tables = {
        "supported": results.supported,
        "never trained on": results.unseen,
        "supported, without commas between the words": results.together,
    }
    table = "\n".join(f"| {name} | {one.words} | {100 * one.wer:.1f} % |" for name, one in tables.items())
    text = _CARD.format(
        words=len(recipe.WORDS),
        english=", ".join(recipe.VOCABULARY["en"]),
        french=", ".join(recipe.VOCABULARY["fr"]),
        voices=", ".join(f"`{voice}`" for voices in recipe.SUPPORTED_VOICES.values() for voice in voices),
        table=table,
        folder=FOLDER,
    )
    (checkpoint / "README.md").write_text(text, encoding="utf-8")
