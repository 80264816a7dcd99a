// Whether the service is there and lets us in. A browser does not tell a page why a WebSocket was refused,
// so we ask by plain HTTP before each connection.

const KEY = "stt-key"; // kept until the tab is closed

export class Unreachable extends Error {}
export class KeyRefused extends Error {}

const address = (path) => new URL(path, document.baseURI);

// Resolves to {query, service}: what a WebSocket's query must carry to be let in, and what the service says of itself.
// `askForKey(wasWrong)` resolves to a key, or to null where nobody gives one.
export async function requestAccess(askForKey) {
  for (let wasWrong = false; ; wasWrong = true) {
    const key = sessionStorage.getItem(KEY);
    const headers = key ? { Authorization: `Bearer ${key}` } : {};
    const answer = await ask(address("."), { headers: { ...headers, Accept: "application/json" }, cache: "no-store" });
    if (answer.ok) return { query: key ? await token(headers) : {}, service: await answer.json() };
    if (answer.status === 403) throw new KeyRefused("This service may not be used from here.");
    if (answer.status !== 401) throw new Unreachable(`HTTP ${answer.status}`);
    sessionStorage.removeItem(KEY);
    const given = await askForKey(wasWrong || key !== null);
    if (!given) throw new KeyRefused("This service needs an access key.");
    sessionStorage.setItem(KEY, given);
  }
}

// The key itself stays out of addresses, which end up in logs: a token that soon expires stands for it.
async function token(headers) {
  const answer = await ask(address("v1/tokens"), { method: "POST", headers });
  if (answer.status === 404) return {}; // a service without keys
  if (!answer.ok) throw new Unreachable(`HTTP ${answer.status}`);
  return { token: (await answer.json()).token };
}

async function ask(url, options) {
  try {
    return await fetch(url, options);
  } catch {
    throw new Unreachable("no answer");
  }
}

export function streamAddress(query) {
  const url = address("v1/stream");
  url.protocol = url.protocol.replace("http", "ws");
  url.search = new URLSearchParams(query);
  return url;
}
