// What the server is asked over HTTP: answers, streams of events and of samples, and errors with their cause.

const KEY = "gpa-key";

export class ApiError extends Error {
  constructor(message, { status = 0, param = null, code = null, request = null, retry = null } = {}) {
    super(message);
    Object.assign(this, { status, param, code, request, retry });
  }
}

export function useKey(key) {
  sessionStorage.setItem(KEY, key);
}

// The response to a request; whatever is no success is thrown as an ApiError.
export async function ask(path, { json, headers = {}, ...given } = {}) {
  const key = sessionStorage.getItem(KEY);
  const sent = { ...headers, ...(key && { Authorization: `Bearer ${key}` }), ...(json && { "Content-Type": "application/json" }) };
  let response;
  try {
    response = await fetch(path, { ...given, headers: sent, ...(json && { body: JSON.stringify(json) }) });
  } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new ApiError("The server cannot be reached. Is it still running?", { code: "unreachable" });
  }
  if (!response.ok) throw await failed(response);
  return response;
}

async function failed(response) {
  const given = (await response.json().catch(() => ({}))).error ?? {};
  const more = { status: response.status, request: response.headers.get("x-request-id"), retry: Number(response.headers.get("retry-after")) || null };
  return new ApiError(given.message ?? `The server answered ${response.status}.`, { ...more, param: given.param, code: given.code });
}

// Events of a stream as they come, each the JSON after `data:`; one that is an error is thrown.
export async function* events(response) {
  let rest = "";
  for await (const text of chunks(response.body.pipeThrough(new TextDecoderStream()))) {
    const lines = (rest + text).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data:") || line.includes("[DONE]")) continue;
      const event = JSON.parse(line.slice(5));
      if (event.error) throw new ApiError(event.error.message, { status: 500, ...event.error });
      yield event;
    }
  }
}

// Samples of a raw body of 16-bit PCM as they come; a sample may be cut between two chunks of bytes.
export async function* samples(response) {
  let rest = new Uint8Array(0);
  for await (const bytes of chunks(response.body)) {
    const all = new Uint8Array(rest.length + bytes.length);
    all.set(rest);
    all.set(bytes, rest.length);
    rest = all.slice(all.length & ~1);
    if (all.length > 1) yield fromPcm(all.subarray(0, all.length & ~1));
  }
}

async function* chunks(stream) {
  const reader = stream.getReader();
  try {
    for (let read = await reader.read(); !read.done; read = await reader.read()) yield read.value;
  } finally {
    reader.cancel().catch(() => {});
  }
}

// Float samples of 16-bit little-endian bytes.
export function fromPcm(bytes) {
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  return Float32Array.from({ length: bytes.byteLength >> 1 }, (_, i) => view.getInt16(2 * i, true) / 32768);
}

export function fromBase64(text) {
  return Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
}
