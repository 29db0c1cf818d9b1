/** What a device refuses, and the codes that conformance vectors have for it. */

export class SecaggError extends Error {
  /** @type {string} */
  code = "invalid";
}

/** A value that no round, grid or message may have. */
export class InvalidValue extends SecaggError {}

/** Bytes that are not a message of this protocol. */
export class MalformedMessage extends SecaggError {
  code = "malformed";
}

/** A well-formed message that breaks a rule: the device leaves the round. */
export class Refused extends SecaggError {
  code = "refused";
}

/** A call or a message that the current state does not take. */
export class WrongState extends SecaggError {
  code = "wrong_state";
}
