// Requests to the service, its failures as errors that a person can read, and a request as a curl command.

/** @import { ChosenImage, Fields } from "./types.d.ts" */

/** A failure with one sentence for the reader. */
export class RequestError extends Error {
  /**
   * @param {string} message
   * @param {{ kind?: string, retryAfter?: number | null }} [details]
   */
  constructor(message, { kind = "internal", retryAfter = null } = {}) {
    super(message);
    this.kind = kind;
    this.retryAfter = retryAfter;
  }
}

/**
 * Return the address of a route: a proxy may offer the service below a path of its own.
 * @param {string} route
 */
export function address(route) {
  return new URL(route.replace(/^\//, ""), document.baseURI).href;
}

/** @param {Response} response */
async function checked(response) {
  if (response.ok) return response;
  /** @type {any} */
  let body = null;
  try {
    body = await response.json();
  } catch {
    // Not from the service itself: a proxy, a gateway.
  }
  throw new RequestError(body?.error ?? `The service answered ${response.status} ${response.statusText}.`, {
    kind: body?.kind,
    retryAfter: Number(response.headers.get("retry-after")) || null,
  });
}

/**
 * @param {string} route
 * @param {RequestInit} [options]
 */
async function send(route, options) {
  try {
    return await fetch(address(route), options);
  } catch (error) {
    if (error instanceof DOMException && error.name === "AbortError") throw error;
    throw new RequestError("The service cannot be reached. Is it still running?", { kind: "unreachable" });
  }
}

/**
 * @param {string} route
 * @param {AbortSignal} [signal]
 * @returns {Promise<any>}
 */
export async function read(route, signal) {
  return (await checked(await send(route, { signal }))).json();
}

/** @param {string} url */
export async function fetchBlob(url) {
  return (await checked(await send(url))).blob();
}

/**
 * Post an image with fields; empty and false fields are left out.
 * @param {string} route
 * @param {ChosenImage} image
 * @param {Fields} fields
 * @param {AbortSignal} [signal]
 */
export async function post(route, image, fields, signal) {
  const form = new FormData();
  form.append("image", image.blob, "picture");
  for (const [name, value] of texts(fields)) form.append(name, value);
  return checked(await send(route, { method: "POST", body: form, signal }));
}

/**
 * @param {Fields} fields
 * @returns {[string, string][]}
 */
function texts(fields) {
  const present = Object.entries(fields).filter(
    ([, value]) => value !== "" && value !== null && value !== undefined && value !== false,
  );
  return present.map(([name, value]) => [name, String(value)]);
}

/** @param {string} text */
const quoted = (text) => (/^[\w.,=@:/+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`);

/**
 * The same request for a shell.
 * @param {string} route
 * @param {string} name of the image's file
 * @param {Fields} fields
 */
export function curl(route, name, fields) {
  // In quotes of its own: a comma or a semicolon in a file's name means something to curl, as does @ in a text.
  const file = /^[\w.-]+$/.test(name) ? name : `"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const options = texts(fields).map(([field, value]) => `--form-string ${quoted(`${field}=${value}`)}`);
  return ["curl", "-F", quoted(`image=@${file}`), ...options, quoted(address(route))].join(" ");
}
