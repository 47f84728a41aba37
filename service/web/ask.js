// The service's answers, its failures as errors that a person can read, and the same request as a curl command.

export class Refused extends Error {
  constructor(message, { kind = "internal", retryAfter = null } = {}) { super(message); this.kind = kind; this.retryAfter = retryAfter; }
}

async function answered(response) {
  if (response.ok) return response;
  let said = null;
  try { said = await response.json(); } catch { /* not from the service itself: a proxy, a gateway */ }
  throw new Refused(said?.error ?? `The service answered ${response.status} ${response.statusText}.`,
    { kind: said?.kind, retryAfter: Number(response.headers.get("retry-after")) || null });
}

async function fetched(route, options) {
  try { return await fetch(route, options); } catch (error) {
    if (error.name === "AbortError") throw error;
    throw new Refused("The service cannot be reached. Is it still running?", { kind: "unreachable" });
  }
}

export async function read(route, signal) { return (await answered(await fetched(route, { signal }))).json(); }

export async function fetchBlob(url) { return (await answered(await fetched(url))).blob(); }

/** Post a picture with fields; empty and false fields are left out. */
export async function post(route, picture, fields, signal) {
  const form = new FormData();
  form.append("image", picture.blob, "picture");
  for (const [name, value] of given(fields)) form.append(name, value);
  return answered(await fetched(route, { method: "POST", body: form, signal }));
}

function given(fields) { return Object.entries(fields).filter(([, value]) => value !== "" && value !== null && value !== undefined && value !== false).map(([name, value]) => [name, String(value)]); }

const quoted = (text) => /^[\w.,=@:\/+-]+$/.test(text) ? text : `'${text.replaceAll("'", `'\\''`)}'`;

/** The same request for a shell. */
export function curl(route, name, fields) {
  // In quotes of its own: a comma or a semicolon in a file's name means something to curl, as does @ in a text.
  const file = /^[\w.-]+$/.test(name) ? name : `"${name.replaceAll("\\", "\\\\").replaceAll('"', '\\"')}"`;
  const texts = given(fields).map(([field, value]) => `--form-string ${quoted(`${field}=${value}`)}`);
  return ["curl", "-F", quoted(`image=@${file}`), ...texts, quoted(new URL(route, location.href).href)].join(" ");
}
