// What was said: finished words in turns, and the text that the model is not done with yet.

import { subRip } from "./subtitles.js";

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
    return subRip(this.turns);
  }
}

export const clockTime = (seconds) => `${Math.floor(seconds / 60)}:${String(Math.floor(seconds % 60)).padStart(2, "0")}`;
