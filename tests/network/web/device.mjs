/** A device in Node: reads {modules, address, key, updates} from standard input, or from the file that
 * its first argument names; the second names its participation record. */
import { existsSync, readFileSync, writeFileSync } from "node:fs";

const [, , from, recordFile] = process.argv;
const setup = JSON.parse(readFileSync(from ?? 0, "utf8"));
const load = (name) => import(`${setup.modules}/${name}.mjs`);
const { readKey } = await load("enrolment");
const { Participant } = await load("participant");
const { ParticipationRecord } = await load("record");
const { Service } = await load("service");

/** Wait until the server is there. */
async function taskOf(address) {
  for (;;) {
    const answer = await fetch(`${address}take_part.json`).catch(() => null);
    if (answer?.ok) return answer.json();
    await new Promise((done) => setTimeout(done, 50));
  }
}

const floats = (hex) => new Float32Array(new Uint8Array(Buffer.from(hex, "hex")).buffer);
const file = recordFile ?? setup.record;
const storage = {
  read: async () => (existsSync(file) ? JSON.parse(readFileSync(file, "utf8")) : null),
  write: async (content) => writeFileSync(file, JSON.stringify(content)),
};
const says = (event) => console.error(JSON.stringify(event));
try {
  const task = setup.take_part ?? { ...(await taskOf(setup.address)), ...setup.task };
  const record = file ? await ParticipationRecord.open(storage, setup.first_install) : null;
  const service = new Service(setup.address, readKey(setup.key), says, setup.give_up_seconds);
  const train = async (values, parameters, payload, round) => floats(setup.updates[round % setup.updates.length]);
  const rounds = await new Participant({ service, task, train, record, says }).run();
  console.log(JSON.stringify({ rounds }));
} catch (error) {
  console.log(JSON.stringify({ failed: error.constructor.name, text: error.message }));
}
