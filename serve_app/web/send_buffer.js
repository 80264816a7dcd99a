// What was sent lately, in case the server asks for it again after a broken connection.

export class SendBuffer {
  #pieces = []; // {first, samples}: in order, without gaps
  #capacity;
  #end = 0;

  // `capacity` in samples; Infinity keeps everything.
  constructor(capacity) {
    this.#capacity = capacity;
  }

  // Number of samples ever added, and so the number of the next one.
  get end() {
    return this.#end;
  }

  // Number of the oldest sample that is still here.
  get first() {
    return this.#pieces[0]?.first ?? this.#end;
  }

  add(samples) {
    this.#pieces.push({ first: this.#end, samples });
    this.#end += samples.length;
    while (this.#pieces.length > 1 && this.#pieces[1].first <= this.#end - this.#capacity) this.#pieces.shift();
  }

  // Everything from sample number `start` on, in pieces.
  *from(start) {
    for (const { first, samples } of this.#pieces) {
      if (first + samples.length > start) yield samples.subarray(Math.max(0, start - first));
    }
  }
}
