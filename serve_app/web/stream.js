// One recording, streamed to `WS /v1/stream`. A connection that breaks is made again and the session goes on where it
// was; a session that the server has lost is begun anew behind the last word that we have.

import { Unreachable, requestAccess, streamAddress } from "./access.js";
import { SendBuffer } from "./send_buffer.js";

export const SERVER_RATE = 24_000; // what the server counts samples in
const GIVE_UP_S = 120;
const KEEP_S = GIVE_UP_S + 30; // the longest absence, and what a connection holds in flight
const SILENCE_S = 30; // the server says something every 10 s
const FIRST_RETRY_S = 0.2;
const LONGEST_RETRY_S = 2;
const WAIT_IN_LINE_S = 120;
const IN_FLIGHT_BYTES = 256 * 1024;

const PASSING = ["restarting", "not_ready", "at_capacity", "too_many_sessions", "too_many_connections"];
const LOST = ["unknown_session", "session_too_long", "engine_lost", "step_failed", "internal_error"];

class Broken extends Error {
  constructor(message, retryAfterS = 0, code = null) {
    super(message);
    this.retryAfterS = retryAfterS;
    this.code = code; // the server's, where it has said why
  }
}

export class Stream {
  #rate;
  #sent;
  #ended = false;
  #closed = false;
  #handlers;
  #socket = null; // only while it is live
  #hangUp = null; // ends the connection that is being opened or live
  #leave; // ends `run`
  #left = new Promise((resolve) => (this.#leave = resolve));
  #wasLive = false;
  #token = null;
  #lastSeq = 0;
  #sessionStart = 0; // sample with which the server's session began
  #wordsEnd = 0; // sample behind the last word
  #lastReady = 0;

  // `rate` is that of the samples to come; a file (`keepsAll`) can be sent again from its beginning.
  // Handlers: askForKey(wasWrong); state(name, detail), its names being connecting and reconnecting (detail: the error
  // that is why it has not worked yet), waiting (detail: place in line), live, migrating, parked; event(message) with
  // the server's messages, and {type: "begun"} where a session begins and text without a word is void.
  constructor({ rate, keepsAll = false, handlers }) {
    this.#rate = rate;
    this.#sent = new SendBuffer(keepsAll ? Infinity : KEEP_S * rate);
    this.#handlers = handlers;
  }

  send(samples) {
    this.#sent.add(samples);
    this.#socket?.send(samples);
  }

  end() {
    this.#ended = true;
    this.#socket?.send('{"type": "end"}');
  }

  // Ends `run` at once: a farewell would wait behind all audio that is on its way.
  close() {
    this.#closed = true;
    this.#hangUp?.();
    this.#leave();
  }

  // Resolves when there is room for more. Only a file needs it: a microphone does not wait.
  async room() {
    while (!this.#closed && !(this.#socket?.bufferedAmount < IN_FLIGHT_BYTES)) await sleep(0.02);
  }

  // Resolves with `done`, or when the stream is closed; rejects where the service cannot go on.
  run() {
    return Promise.race([this.#left, this.#goOn()]);
  }

  async #goOn() {
    this.#lastReady = performance.now();
    this.#handlers.state("connecting");
    for (let waitS = FIRST_RETRY_S; !this.#closed; waitS = Math.min(2 * waitS, LONGEST_RETRY_S)) {
      const seen = this.#lastSeq;
      try {
        const { query, service } = await requestAccess(this.#handlers.askForKey);
        if (this.#closed) return;
        return await this.#converse(streamAddress({ ...query, ...this.#wishes(service) }));
      } catch (error) {
        if (this.#closed) return;
        if (!(error instanceof Broken || error instanceof Unreachable)) throw error;
        if (this.#lastSeq !== seen) waitS = FIRST_RETRY_S;
        if (performance.now() - this.#lastReady > GIVE_UP_S * 1000) {
          throw new ServerError(`The service is not available: ${error.message}.`);
        }
        this.#handlers.state(this.#wasLive ? "reconnecting" : "connecting", error);
        await sleep(Math.max(waitS, error.retryAfterS ?? 0));
      }
    }
  }

  #wishes(service) {
    const wishes = { format: "f32", sample_rate: this.#rate, words: true, pauses: true, resumable: true };
    wishes.wait_s = Math.floor(Math.min(WAIT_IN_LINE_S, service.longest_wait_seconds ?? 0));
    if (this.#token) Object.assign(wishes, { resume: this.#token, last_seq: this.#lastSeq });
    return wishes;
  }

  #converse(url) {
    return new Promise((resolve, reject) => {
      const socket = new WebSocket(url);
      let watchdog;
      const finish = (settle, value) => {
        clearTimeout(watchdog);
        socket.onmessage = socket.onclose = null;
        socket.close();
        this.#socket = this.#hangUp = null;
        settle(value);
      };
      this.#hangUp = () => finish(resolve);
      const watch = () => {
        clearTimeout(watchdog);
        watchdog = setTimeout(() => finish(reject, new Broken("the service fell silent")), SILENCE_S * 1000);
      };
      watch();
      socket.onclose = () => finish(reject, new Broken("the connection broke off"));
      socket.onmessage = ({ data }) => {
        watch();
        try {
          const message = JSON.parse(data);
          if (message.type === "ready") this.#resume(socket, message);
          else if (this.#take(message)) finish(resolve);
        } catch (error) {
          finish(reject, error);
        }
      };
    });
  }

  #resume(socket, { resume_token, received }) {
    if (!received) this.#beginAnew();
    const taken = Math.round(((received?.samples ?? 0) * this.#rate) / SERVER_RATE);
    this.#token = resume_token;
    this.#lastReady = performance.now();
    for (const samples of this.#sent.from(this.#sessionStart + taken)) socket.send(samples);
    if (this.#ended && !received?.end) socket.send('{"type": "end"}');
    this.#socket = socket;
    this.#wasLive = true;
    this.#handlers.state("live");
  }

  #beginAnew() {
    this.#lastSeq = 0;
    this.#sessionStart = Math.max(this.#sent.first, this.#wordsEnd);
    this.#handlers.event({ type: "begun", time: this.#sessionStart / this.#rate });
  }

  // Passes a message on; times are those of the whole recording. Returns whether it was the last one.
  #take(message) {
    if (message.type === "error") throw this.#failure(message);
    if (message.type === "status") this.#handlers.state(message.state, message.place);
    if (message.type === "status" || message.type === "ping") return false;
    if (message.seq !== undefined) {
      if (message.seq <= this.#lastSeq) return false;
      this.#lastSeq = message.seq;
    }
    const startS = this.#sessionStart / this.#rate;
    for (const field of ["start", "end", "time"]) if (field in message) message[field] += startS;
    if (message.type === "word") this.#wordsEnd = Math.round(message.end * this.#rate);
    this.#handlers.event(message);
    return message.type === "done";
  }

  #failure({ code, message, retry_after_s }) {
    if (LOST.includes(code)) this.#token = null;
    if (LOST.includes(code) || PASSING.includes(code)) return new Broken(message, retry_after_s, code);
    return new ServerError(message);
  }
}

export class ServerError extends Error {}

export const sleep = (seconds) => new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
