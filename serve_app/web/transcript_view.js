// Shows a transcript: a paragraph for each turn, the time on each word, what is not certain yet behind it.

import { clockTime } from "./transcript.js";

const NEAR_THE_END_PX = 80;

export class TranscriptView {
  #element;
  #transcript;
  #interim = Object.assign(document.createElement("span"), { className: "interim", ariaHidden: "true" });

  constructor(element, transcript) {
    this.#element = element;
    this.#transcript = transcript;
    element.replaceChildren();
  }

  showWord(word) {
    this.#followingTheEnd(() => {
      const { turns } = this.#transcript;
      if (this.#element.querySelectorAll("p.turn").length < turns.length) this.#element.append(newTurn(word.start));
      const shown = Object.assign(document.createElement("span"), { className: "word", textContent: word.text });
      shown.dataset.time = `${word.start.toFixed(1)}–${word.end.toFixed(1)} s`;
      this.#element.querySelector("p.turn:last-of-type").append(shown, " ");
      this.#placeInterim();
    });
  }

  showInterim() {
    this.#followingTheEnd(() => this.#placeInterim());
  }

  #placeInterim() {
    this.#interim.textContent = this.#transcript.interim.map(({ text }) => text).join("");
    const turn = this.#element.querySelector("p.turn:last-of-type");
    if (this.#interim.textContent === "") this.#interim.remove();
    else (turn && !this.#transcript.turnIsOver ? turn : this.#element).append(this.#interim);
  }

  // Scrolls along, unless the reader has gone back.
  #followingTheEnd(change) {
    const page = document.scrollingElement;
    const follows = page.scrollHeight - page.scrollTop - page.clientHeight < NEAR_THE_END_PX;
    change();
    if (follows) page.scrollTop = page.scrollHeight;
  }
}

function newTurn(start) {
  const turn = Object.assign(document.createElement("p"), { className: "turn" });
  turn.append(Object.assign(document.createElement("time"), { textContent: clockTime(start) }));
  return turn;
}
