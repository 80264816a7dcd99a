// Runs in the browser's audio thread: collects the microphone's samples, mono, in pieces of 80 ms.

class Microphone extends AudioWorkletProcessor {
  #piece = new Float32Array(Math.round(0.08 * sampleRate));
  #filled = 0;

  process([[samples]]) {
    for (let at = 0; samples && at < samples.length; ) {
      const taken = samples.subarray(at, at + this.#piece.length - this.#filled);
      this.#piece.set(taken, this.#filled);
      this.#filled += taken.length;
      at += taken.length;
      if (this.#filled === this.#piece.length) {
        this.port.postMessage(this.#piece.slice());
        this.#filled = 0;
      }
    }
    return true;
  }
}

registerProcessor("microphone", Microphone);
