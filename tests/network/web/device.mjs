/** A device in Node: reads {modules, address, key, task, update | training} from standard input. */
const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const setup = JSON.parse(chunks.join(""));
const load = (name) => import(`${setup.modules}/${name}.mjs`);
const { readKey } = await load("enrolment");
const { Participant } = await load("participant");
const { Service } = await load("service");

const task = setup.task ?? (await (await fetch(`${setup.address}take_part.json`)).json());
const key = readKey(setup.key);
const service = new Service(setup.address, key, () => {}, setup.giveUpSeconds ?? 60);
const updates = setup.updates.map((hex) => new Float32Array(new Uint8Array(Buffer.from(hex, "hex")).buffer));
const train = async (values, parameters, round) => updates[round];
const says = (event) => console.error(JSON.stringify(event));
try {
  const rounds = await new Participant({ service, task, train, record: null, says }).run();
  console.log(JSON.stringify({ rounds }));
} catch (error) {
  console.log(JSON.stringify({ failed: error.constructor.name, text: error.message }));
}
