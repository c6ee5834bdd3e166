// BullMQ's side of a no-op task. Settings and the pages that recommend them are in README.md.

import { createRequire } from "node:module";

// The library is in the scratch folder, not beside this file.
const { Worker } = createRequire(process.env.PEERS_NODE)("bullmq");
const want = JSON.parse(process.env.PEERS_TURN);

const worker = new Worker(want.name, async (job) => job.data, {
  connection: { url: want.redis, maxRetriesPerRequest: null },
  prefix: `{${want.name}}`,
  concurrency: want.settings.concurrency,
  removeOnComplete: { count: 1000 },
  removeOnFail: { count: 5000 },
});
worker.on("error", (error) => console.error(`${error.name}: ${error.message}`));

let stopping = false;
for (const signal of ["SIGTERM", "SIGINT"]) {
  process.on(signal, async () => {
    if (stopping) return;
    stopping = true;
    await worker.close();
    process.exit(0);
  });
}
