// The page: what its buttons do and what it shows while the text comes.

import { KeyRefused, requestAccess } from "./access.js";
import { openMicrophone, readFile } from "./audio.js";
import { Plot, loudness } from "./plot.js";
import { SERVER_RATE, Stream } from "./stream.js";
import { Transcript } from "./transcript.js";
import { TranscriptView } from "./transcript_view.js";

const element = (id) => document.getElementById(id);
const plot = new Plot(element("plot"));
const SHOWN_PIECE = 0.08 * SERVER_RATE;
const FILE_PIECE = 6 * SHOWN_PIECE;
const SHOWN_PAUSE = 2; // of the probabilities of pauses of 0.5, 1, 2 and 3 s

let transcript;
let view;
let recordedS = 0; // in earlier recordings of this transcript
let running = null; // {finish, cancel}

function clear() {
  transcript = new Transcript();
  view = new TranscriptView(element("transcript"), transcript);
  recordedS = 0;
  plot.clear();
  element("progress").textContent = "";
  showText();
}

function showText() {
  const hasText = !transcript.isEmpty || transcript.interim.length > 0;
  element("empty").hidden = hasText;
  element("transcript").hidden = !hasText;
  element("with-text").hidden = transcript.isEmpty;
  element("clear").disabled = running !== null;
}

function showState(name, text) {
  document.body.dataset.state = name;
  document.body.classList.toggle("running", running !== null);
  if (element("state").textContent !== text) element("state").textContent = text;
  element("record-label").textContent = running === null ? "Start" : running.finish ? "Stop" : "Cancel";
  element("open").disabled = running !== null;
  showText();
}

function showLevel(level) {
  element("level").firstElementChild.style.transform = `scaleX(${level})`;
  element("level").ariaValueNow = Math.round(100 * level);
}

// The server's reasons for not taking us in yet.
const WHY_NOT_YET = {
  not_ready: "The service is not ready yet.",
  restarting: "The service is being restarted.",
  at_capacity: "All places are taken.",
  too_many_sessions: "Your key is already in use in as many places as it may be. Stop one of them, or wait.",
  too_many_connections: "There are too many connections from your network already. Close one of them, or wait.",
};

// What the stream's states mean to somebody who speaks, or waits for a file.
function stateText(name, detail, isFile) {
  switch (name) {
    case "connecting":
      return detail ? `${WHY_NOT_YET[detail.code] ?? "The service does not answer."} Trying again…` : "Connecting…";
    case "waiting":
      return `All places are taken. You are number ${detail} in line; nothing you say is lost.`;
    case "reconnecting":
      return isFile
        ? "Connection lost. Going on as soon as the service is back…"
        : "Connection lost. Keep speaking: nothing is lost, the words will follow.";
    case "migrating":
      return "One moment, the service is catching up…";
    default:
      return isFile ? "Reading the file…" : "Listening";
  }
}

function askForKey(wasWrong) {
  const dialog = element("key-dialog");
  element("key-hint").textContent = wasWrong
    ? "This key is not accepted. Please check it."
    : "This service is for people with a key. It is forgotten when you close this tab.";
  element("key").value = "";
  dialog.showModal();
  return new Promise((resolve) => {
    let key = null;
    element("key-form").onsubmit = (event) => {
      event.preventDefault();
      key = element("key").value.trim();
      dialog.close();
    };
    element("key-cancel").onclick = () => dialog.close();
    dialog.onclose = () => resolve(key);
  });
}

// Transcribes what `feed(stream)` sends, until the service is done with it; `heardS()` is how much audio there was so far.
// `onTime(timeS)` is told how far the service has come.
async function transcribe({ rate, isFile, feed, stop, heardS, onTime = () => {} }) {
  const base = recordedS;
  let liveState = "connecting";
  const onEvent = (message) => {
    for (const field of ["start", "end", "time"]) if (field in message) message[field] += base;
    switch (message.type) {
      case "begun":
        transcript.forgetInterim();
        view.showInterim();
        break;
      case "token":
        transcript.addText(message.text, base + heardS());
        view.showInterim();
        showText();
        break;
      case "word": {
        const { word, heardAt } = transcript.addWord(message);
        view.showWord(word);
        if (!isFile && heardAt !== undefined) {
          element("progress").textContent = `last word after ${(heardAt - word.start).toFixed(1)} s`;
        }
        onTime(word.end);
        showText();
        break;
      }
      case "vad_end":
        transcript.endTurn();
        break;
      case "pauses":
        onTime(message.time);
        element("pause-legend").hidden = false;
        plot.addPause(message.time, message.probabilities[SHOWN_PAUSE] ?? message.probabilities.at(-1));
        break;
    }
  };
  const onState = (name, detail) => {
    liveState = name;
    const isFinishing = !isFile && running.finish === null && name === "live";
    showState(isFinishing ? "finishing" : name, isFinishing ? "Writing the last words…" : stateText(name, detail, isFile));
  };
  const stream = new Stream({ rate, keepsAll: isFile, handlers: { event: onEvent, state: onState, askForKey } });
  const finish = () => {
    stop();
    stream.end();
    running.finish = null;
    showLevel(0);
    onState(liveState);
  };
  running = { finish: isFile ? null : finish, cancel: () => stream.close() };
  element("monitor").hidden = false;
  try {
    feed(stream, base);
    await stream.run();
  } finally {
    stop();
    stream.close();
    recordedS = base + heardS();
    transcript.endTurn();
    transcript.forgetInterim();
    view.showInterim();
  }
}

async function transcribeMicrophone() {
  const microphone = await openMicrophone(() => running?.finish?.());
  let samplesHeard = 0;
  const heardS = () => samplesHeard / microphone.rate;
  const feed = (stream, base) =>
    microphone.start((samples) => {
      samplesHeard += samples.length;
      stream.send(samples);
      const level = loudness(samples);
      showLevel(level);
      plot.addLevel(base + heardS(), level);
    });
  const wakeLock = await navigator.wakeLock?.request("screen").catch(() => null); // a phone's screen stays on
  try {
    await transcribe({ rate: microphone.rate, isFile: false, feed, stop: microphone.stop, heardS });
  } finally {
    wakeLock?.release();
  }
}

async function transcribeFile(file) {
  showState("connecting", "Opening the file…");
  const samples = await readFile(file);
  let at = 0;
  let stopped = false;
  const feed = async (stream) => {
    for (; at < samples.length; at += FILE_PIECE) {
      await stream.room();
      if (stopped) return;
      stream.send(samples.subarray(at, at + FILE_PIECE));
    }
    stream.end();
  };
  const heardS = () => Math.min(at, samples.length) / SERVER_RATE;
  let shown = 0;
  const onTime = (timeS) => {
    const end = Math.min(timeS * SERVER_RATE, samples.length);
    for (; shown < end; shown += SHOWN_PIECE) {
      plot.addLevel(shown / SERVER_RATE, loudness(samples.subarray(shown, shown + SHOWN_PIECE)));
    }
    element("progress").textContent = `${Math.round((100 * end) / samples.length)} %`;
  };
  await transcribe({ rate: SERVER_RATE, isFile: true, feed, stop: () => (stopped = true), heardS, onTime });
  element("progress").textContent = "";
}

// One recording at a time; whatever goes wrong is said.
async function run(transcribing) {
  running = { finish: null, cancel: () => {} };
  showState("connecting", "One moment…");
  let [name, text] = ["done", "Done"];
  try {
    await transcribing();
  } catch (error) {
    if (error.constructor === Error || error instanceof TypeError) console.error(error);
    [name, text] = ["failed", error.message];
  }
  running = null;
  showLevel(0);
  showState(name, text);
}

function openFile(file) {
  if (!file || running) return;
  if (!transcript.isEmpty && !confirm("Replace the text on this page?")) return;
  clear();
  run(() => transcribeFile(file));
}

function save(text, extension) {
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([text], { type: "text/plain" }));
  link.download = `transcript.${extension}`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10_000);
}

async function copy() {
  try {
    await navigator.clipboard.writeText(transcript.toText());
  } catch {
    getSelection().selectAllChildren(element("transcript")); // not a secure page, or not allowed: by hand, then
    element("state").textContent = "Copy the marked text with your keyboard.";
    return;
  }
  element("copy").textContent = "Copied";
  setTimeout(() => (element("copy").textContent = "Copy"), 1500);
}

function onDrag(event) {
  event.preventDefault();
  document.body.classList.toggle("dragging", event.type === "dragover" && !running);
  if (event.type === "drop") openFile(event.dataTransfer.files[0]);
}

element("record").onclick = () => {
  if (running === null) run(transcribeMicrophone);
  else (running.finish ?? running.cancel)();
};
element("open").onclick = () => element("file").click();
element("file").onchange = ({ target }) => {
  openFile(target.files[0]);
  target.value = ""; // so that the same file can be opened again
};
element("times").onclick = ({ currentTarget }) => {
  currentTarget.ariaPressed = String(document.body.classList.toggle("times"));
};
element("copy").onclick = copy;
element("save-text").onclick = () => save(transcript.toText(), "txt");
element("save-subtitles").onclick = () => save(transcript.toSubtitles(), "srt");
element("clear").onclick = () => {
  clear();
  showState("idle", "Ready");
  element("record").focus();
};
for (const name of ["dragover", "dragleave", "drop"]) addEventListener(name, onDrag);
addEventListener("beforeunload", (event) => running && event.preventDefault());

clear();
try {
  const { service } = await requestAccess(askForKey);
  element("model").textContent = service.model;
  if (!running) showState("idle", service.ready ? "Ready" : "The service is starting…");
} catch (error) {
  if (!running) showState("failed", error instanceof KeyRefused ? error.message : "The service does not answer.");
}
