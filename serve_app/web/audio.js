// Where samples come from: the microphone, or a file. Mono, at a rate that the server knows.

import { SERVER_RATE } from "./stream.js";

const RATES = [8_000, 16_000, 22_050, 24_000, 44_100, 48_000];

export class AudioProblem extends Error {}

// Returns {rate, start, stop}: from `start(onSamples)` on each 80 ms is passed on, until `stop()`. `onLost` is called when
// the microphone goes away by itself.
export async function openMicrophone(onLost) {
  if (!navigator.mediaDevices) {
    throw new AudioProblem("Browsers allow the microphone only on secure pages (https). Files still work.");
  }
  const media = await askForMicrophone();
  const [track] = media.getAudioTracks();
  try {
    const { context, source } = connect(media);
    await context.audioWorklet.addModule(new URL("microphone_worklet.js", import.meta.url));
    const mono = { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" };
    const worklet = new AudioWorkletNode(context, "microphone", mono);
    track.onended = onLost;
    source.connect(worklet);
    await context.resume();
    const start = (onSamples) => (worklet.port.onmessage = ({ data }) => onSamples(data));
    const stop = () => {
      worklet.port.onmessage = null;
      track.onended = null;
      track.stop();
      if (context.state !== "closed") context.close();
    };
    return { rate: context.sampleRate, start, stop };
  } catch (error) {
    track.stop();
    throw error;
  }
}

async function askForMicrophone() {
  try {
    // What makes calls pleasant makes speech harder to recognise.
    const audio = { channelCount: 1, echoCancellation: false, noiseSuppression: false, autoGainControl: true };
    return await navigator.mediaDevices.getUserMedia({ audio });
  } catch (error) {
    if (error.name === "NotAllowedError") {
      throw new AudioProblem("The microphone is blocked. Allow it in the browser’s address bar, then try again.");
    }
    if (error.name === "NotFoundError") throw new AudioProblem("No microphone was found.");
    throw new AudioProblem("The microphone cannot be used. Perhaps another program is using it.");
  }
}

// At the server's rate where the browser converts to it, else at the device's own (Firefox).
function connect(media) {
  for (const options of [{ sampleRate: SERVER_RATE }, {}, { sampleRate: 48_000 }]) {
    const context = new AudioContext(options);
    try {
      if (RATES.includes(context.sampleRate)) return { context, source: context.createMediaStreamSource(media) };
    } catch {
      // the next one
    }
    context.close();
  }
  throw new AudioProblem("The microphone’s sample rate is not supported.");
}

// All samples of an audio file, at the server's rate.
export async function readFile(file) {
  let decoded;
  try {
    decoded = await new OfflineAudioContext(1, 1, SERVER_RATE).decodeAudioData(await file.arrayBuffer());
  } catch {
    throw new AudioProblem(`“${file.name}” is not an audio file that this browser can read.`);
  }
  const mono = decoded.getChannelData(0);
  for (let channel = 1; channel < decoded.numberOfChannels; channel++) {
    decoded.getChannelData(channel).forEach((sample, at) => (mono[at] += sample));
  }
  return mono.map((sample) => sample / decoded.numberOfChannels);
}
