// The last seconds at a glance: how loud it was, and how likely a pause has begun.

const SHOWN_S = 16;
const QUIET_DB = -55;

// How loud samples are, from 0 to 1.
export function loudness(samples) {
  let sum = 0;
  for (const sample of samples) sum += sample * sample;
  const decibels = 10 * Math.log10(sum / samples.length + 1e-12);
  return Math.min(1, Math.max(0, 1 - decibels / QUIET_DB));
}

export class Plot {
  #svg;
  #levels = []; // of {time, value}, oldest first
  #pauses = [];
  #now = 0;
  #willDraw = false;

  constructor(svg) {
    this.#svg = svg;
  }

  clear() {
    this.#levels = [];
    this.#pauses = [];
    this.#now = 0;
    this.#drawSoon();
  }

  addLevel(time, value) {
    this.#add(this.#levels, time, value);
  }

  addPause(time, value) {
    this.#add(this.#pauses, time, value);
  }

  #add(points, time, value) {
    points.push({ time, value });
    this.#now = Math.max(this.#now, time);
    while (points[0]?.time < this.#now - SHOWN_S) points.shift();
    this.#drawSoon();
  }

  #drawSoon() {
    if (!this.#willDraw) requestAnimationFrame(() => this.#draw());
    this.#willDraw = true;
  }

  #draw() {
    this.#willDraw = false;
    const x = ({ time }) => (100 * (1 - (this.#now - time) / SHOWN_S)).toFixed(2);
    const bars = this.#levels.map((point) => {
      const half = 1 + 45 * point.value ** 1.5;
      return `M${x(point)} ${(50 - half).toFixed(1)}v${(2 * half).toFixed(1)}`;
    });
    this.#svg.querySelector(".level").setAttribute("d", bars.join(""));
    const line = this.#pauses.map((point) => `${x(point)},${(96 - 92 * point.value).toFixed(1)}`);
    this.#svg.querySelector(".pause").setAttribute("points", line.join(" "));
  }
}
