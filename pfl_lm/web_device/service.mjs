/** A device's connection to the server over HTTPS: calls are authenticated, and retried while that
 * helps. network/rpc_client.py is the same in Python. */
import { ascii, concat, u32 } from "./bytes.mjs";
import { MalformedMessage } from "./errors.mjs";
import { sign } from "./primitives.mjs";
import { decode, decodeAll, delimited, encode } from "./protobuf.mjs";
import { LABEL } from "./wire.mjs";

const CHUNK_BYTES = 1 << 20;
const UNAUTHENTICATED = 16;
const RESOURCE_EXHAUSTED = 8;
const FAILED_PRECONDITION = 9;
const AGAIN = new Set([1, 2, 4, 8, 14]); // cancelled, unknown, too late, too often, unavailable
const FIRST_SECONDS = 0.2;
const MOST_SECONDS = 10;
const GIVE_UP_SECONDS = 600;
const CALL_SECONDS = 60; // more than the server holds a Fetch
const MOST_BYTES = 64 << 20; // of an answer: a device reads no more

/** The round goes on without this device; the next one may invite it again. */
export class DroppedFromRound extends Error {}

/** The server refuses this device; calling again does not help. */
export class RefusedByServer extends Error {}

class Status extends Error {
  constructor(code, message) {
    super(message);
    this.code = code;
  }
}

/**
 * A device's key, as `pfl-lm enrol` writes it and an enrolment link carries it.
 * @typedef {object} DeviceKey
 * @property {number} number
 * @property {Uint8Array} secret Ed25519
 * @property {Uint8Array} certificate the authority's
 * @property {Uint8Array} authority its public key
 * @property {Uint8Array} server SHA-256 of the server's TLS certificate, DER
 */

const toBase64 = (bytes) => btoa(String.fromCharCode(...bytes));
const wait = (seconds) => new Promise((done) => setTimeout(done, 1000 * seconds));

/** Read an answer, and stop at more bytes than may come. @throws {MalformedMessage} */
async function bytesOf(answer, most) {
  const reader = answer.body.getReader();
  const parts = [];
  let size = 0;
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return concat(...parts);
    size += value.length;
    if (size > most) {
      reader.cancel().catch(() => {});
      throw new MalformedMessage(`it is longer than the ${most} bytes that may come`);
    }
    parts.push(value);
  }
}

/** How long a server has been away. A computer that sleeps counts no more than one call and a pause. */
class Away {
  #seconds = 0;
  #asked = Date.now();

  constructor(most) {
    this.most = most;
  }

  ends() {
    [this.#seconds, this.#asked] = [0, Date.now()];
  }

  isTooLong() {
    const passed = (Date.now() - this.#asked) / 1000;
    this.#asked = Date.now();
    this.#seconds += Math.max(0, Math.min(passed, CALL_SECONDS + MOST_SECONDS));
    return this.#seconds > this.most;
  }
}

/** Every method may be called again with the same arguments: the server takes a message once. */
export class Service {
  #token = null;
  #stopped = new AbortController();

  /**
   * @param {string} address of the page, with a slash at its end @param {DeviceKey} key
   * @param {(line: string) => void} says told why the device waits
   * @param {number} giveUpSeconds how long the server may stay away
   */
  constructor(address, key, says = () => {}, giveUpSeconds = GIVE_UP_SECONDS) {
    this.address = address;
    this.key = key;
    this.says = says;
    this.giveUpSeconds = giveUpSeconds;
    this.taskConfig = null;
  }

  /** End the call that is under way, and all later ones. */
  stop() {
    this.#stopped.abort(new RefusedByServer("stopped"));
  }

  /** @returns {Promise<string>} the task configuration as it was received, JSON */
  async open() {
    if (this.taskConfig === null) await this.#retried(() => this.#authenticate());
    return this.taskConfig;
  }

  /** @returns {Promise<object>} the newest item after that one; none after a while */
  fetch(round, step) {
    const cursor = encode("Cursor", { round, step });
    return this.#retried(async () => decode("Item", await this.#called("Fetch", cursor)));
  }

  /**
   * Hand in a message of the protocol, and wait for what comes next in the same call.
   * @param {number} round @param {Uint8Array} frame
   * @param {number} seen the newest step of the round that the device needs no more; 0: do not wait
   * @returns {Promise<object>} what `fetch(round, seen)` returns: none after a while
   */
  send(round, frame, seen) {
    const parts = [];
    for (let at = 0; at === 0 || at < frame.length; at += CHUNK_BYTES) {
      const part = frame.subarray(at, at + CHUNK_BYTES);
      const first = at === 0 ? { round, size: frame.length, seen } : {};
      parts.push(delimited(encode("Upload", { ...first, part })));
    }
    const upload = concat(...parts);
    return this.#retried(async () => decode("Item", await this.#called("Send", upload)));
  }

  /**
   * @param {number} have @param {number} want @param {number} most bytes of the whole model
   * @returns {Promise<Uint8Array>} what has changed since the model of round `have` (-1: all)
   */
  model(have, want, most) {
    const version = encode("Version", { have, want });
    const withLengths = Math.ceil(1.125 * most) + CHUNK_BYTES; // each piece stands behind its length
    return this.#retried(async () => {
      const chunks = decodeAll("Chunk", await this.#called("Model", version, withLengths));
      return concat(...chunks.map((chunk) => chunk.values));
    });
  }

  async #called(method, request, most) {
    if (!this.#token) await this.#authenticate();
    return this.#post(method, request, { "session-bin": toBase64(this.#token) }, most);
  }

  async #authenticate() {
    const { number, secret, certificate, server } = this.key;
    const asked = encode("ChallengeRequest", { device: number });
    const { nonce } = decode("ChallengeResponse", await this.#post("Challenge", asked));
    const content = concat(LABEL, ascii("network session"), nonce, u32(number), server);
    const signature = await sign(secret, content);
    const proof = encode("AuthenticateRequest", { nonce, signature, certificate });
    const session = decode("Session", await this.#post("Authenticate", proof));
    if (this.taskConfig !== null && this.taskConfig !== session.task_config)
      throw new RefusedByServer("the server's task configuration has changed; open the page again");
    this.#token = session.token;
    this.taskConfig = session.task_config;
  }

  async #post(method, body, headers = {}, most = MOST_BYTES) {
    const late = AbortSignal.timeout(1000 * CALL_SECONDS);
    const signal = AbortSignal.any([late, this.#stopped.signal]);
    let answer;
    try {
      answer = await fetch(this.address + method, { method: "POST", body, headers, signal });
      const content = await bytesOf(answer, most);
      if (answer.ok) return content;
      const code = Number(answer.headers.get("grpc-status") ?? 2);
      throw new Status(code, new TextDecoder().decode(content));
    } catch (error) {
      if (error instanceof Status || error instanceof MalformedMessage) throw error;
      if (this.#stopped.signal.aborted) throw this.#stopped.signal.reason;
      const why = error.cause?.message ?? error.message; // of a certificate, where a program may know
      throw new Status(14, `no answer from the server (${why})`);
    }
  }

  async #retried(call) {
    const away = new Away(this.giveUpSeconds);
    let pause = FIRST_SECONDS;
    for (;;) {
      try {
        return await call();
      } catch (error) {
        if (error instanceof MalformedMessage)
          throw new RefusedByServer(`the server's answer cannot be read: ${error.message}`);
        if (!(error instanceof Status)) throw error;
        if (error.code === UNAUTHENTICATED) this.#token = null;
        else if (error.code === FAILED_PRECONDITION) throw new DroppedFromRound(error.message);
        else if (!AGAIN.has(error.code))
          throw new RefusedByServer(`the server refuses: ${error.message}`);
        // The server is there: it says that the device shall wait.
        if (error.code === RESOURCE_EXHAUSTED) away.ends();
        if (away.isTooLong())
          throw new RefusedByServer(`no server for a long time: ${error.message}`);
        if (error.code !== UNAUTHENTICATED) this.says(error.message);
      }
      await wait(pause * (0.5 + Math.random() / 2));
      pause = Math.min(2 * pause, MOST_SECONDS);
    }
  }
}
