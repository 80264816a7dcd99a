// From turns to subtitles that can be read: the same cues as serve_app/segments.py and serve_app/subtitles.py make.

const GAP_S = 1; // between two words ends a segment
const LONGEST_SEGMENT_S = 10;
const LINE_CHARACTERS = 42;
const CUE_LINES = 2;
const LONGEST_CUE_S = 7;
const SHORTEST_CUE_S = 1; // unless the next one comes

// A SubRip file of turns, which are lists of words {text, start, end}.
export function subRip(turns) {
  const cues = turns.flatMap(segmentsOf).flatMap(cuesOf);
  return cues
    .map((words, at) => {
      const start = words[0].start;
      const following = cues[at + 1]?.[0].start ?? Infinity;
      const end = Math.max(words.at(-1).end, Math.min(start + SHORTEST_CUE_S, following));
      return `${at + 1}\n${time(start)} --> ${time(end)}\n${linesOf(words).join("\n")}\n\n`;
    })
    .join("");
}

function segmentsOf(turn) {
  return cut(
    turn,
    (words, word) => word.start - words.at(-1).end >= GAP_S || word.end - words[0].start > LONGEST_SEGMENT_S,
  );
}

function cuesOf(segment) {
  return cut(
    segment,
    (words, word) => word.end - words[0].start > LONGEST_CUE_S || linesOf([...words, word]).length > CUE_LINES,
  );
}

// In parts that begin with each word which `isTooMuch(words, word)` says does not go with the words before it.
function cut(words, isTooMuch) {
  const parts = [];
  for (const word of words) {
    if (parts.length && !isTooMuch(parts.at(-1), word)) parts.at(-1).push(word);
    else parts.push([word]);
  }
  return parts;
}

function linesOf(words) {
  const lines = [];
  for (const { text } of words) {
    const longer = lines.length ? `${lines.at(-1)} ${text}` : text;
    if (lines.length && [...longer].length <= LINE_CHARACTERS) lines[lines.length - 1] = longer;
    else lines.push(text);
  }
  return lines;
}

const digits = (number, count) => String(number).padStart(count, "0");

function time(seconds) {
  const milliseconds = Math.round(1000 * seconds);
  const s = Math.floor(milliseconds / 1000);
  const clock = [Math.floor(s / 3600), Math.floor(s / 60) % 60, s % 60].map((part) => digits(part, 2)).join(":");
  return `${clock},${digits(milliseconds % 1000, 3)}`;
}
