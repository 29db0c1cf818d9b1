/** Answers conformance vectors in Node: one request a line on standard input, one answer a line.
 *
 *     pfl-lm protocol verify "node answer.mjs"
 */
import { createInterface } from "node:readline";

import { answer } from "./answers.mjs";

for await (const line of createInterface({ input: process.stdin })) {
  if (line.trim()) process.stdout.write(`${JSON.stringify(await answer(JSON.parse(line)))}\n`);
}
