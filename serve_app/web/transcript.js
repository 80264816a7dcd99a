// What was said: finished words in turns, and the text that the model is not done with yet.

const LONGEST_CUE_S = 6;
const LONGEST_CUE_CHARACTERS = 80;
const LONGEST_GAP_S = 1.5;

export class Transcript {
  turns = []; // of words {text, start, end}
  interim = []; // of {text, heardAt}, one for each word
  turnIsOver = true;

  get isEmpty() {
    return this.turns.length === 0;
  }

  get lastEnd() {
    return this.turns.at(-1)?.at(-1).end ?? 0;
  }

  // `heardAt`: how much audio there was when the text came, in seconds. Returns whether it starts a word.
  addText(text, heardAt) {
    const startsWord = text.startsWith(" ") || this.interim.length === 0;
    if (startsWord) this.interim.push({ text: "", heardAt });
    this.interim.at(-1).text += text;
    return startsWord;
  }

  // Returns {word, heardAt}; `heardAt` is undefined for a word that came without text before it.
  addWord({ text, start, end }) {
    const heardAt = this.interim[0]?.heardAt;
    for (let seen = 0; this.interim.length && seen < text.length; ) seen += this.interim.shift().text.trim().length;
    if (this.turnIsOver) this.turns.push([]);
    this.turnIsOver = false;
    const word = { text, start, end };
    this.turns.at(-1).push(word);
    return { word, heardAt };
  }

  endTurn() {
    this.turnIsOver = true;
  }

  // The service begins again behind the last word: what came after it comes once more.
  forgetInterim() {
    this.interim = [];
  }

  toText() {
    return this.turns.map((words) => words.map(({ text }) => text).join(" ")).join("\n") + "\n";
  }

  toSubtitles() {
    const cues = this.turns.flatMap(cuesOf);
    return cues
      .map((words, at) => {
        const text = words.map((word) => word.text).join(" ");
        return `${at + 1}\n${subtitleTime(words[0].start)} --> ${subtitleTime(words.at(-1).end)}\n${text}\n`;
      })
      .join("\n");
  }
}

function cuesOf(words) {
  const cues = [];
  let characters = 0;
  for (const word of words) {
    const cue = cues.at(-1);
    const fits =
      cue &&
      word.end - cue[0].start <= LONGEST_CUE_S &&
      word.start - cue.at(-1).end <= LONGEST_GAP_S &&
      characters + word.text.length < LONGEST_CUE_CHARACTERS;
    if (fits) cue.push(word);
    else cues.push([word]);
    characters = (fits ? characters : 0) + word.text.length + 1;
  }
  return cues;
}

const two = (number) => String(number).padStart(2, "0");

function subtitleTime(seconds) {
  const milliseconds = Math.round(1000 * seconds);
  const s = Math.floor(milliseconds / 1000);
  return `${two(Math.floor(s / 3600))}:${two(Math.floor(s / 60) % 60)}:${two(s % 60)},${String(milliseconds % 1000).padStart(3, "0")}`;
}

export const clockTime = (seconds) => `${Math.floor(seconds / 60)}:${two(Math.floor(seconds % 60))}`;
