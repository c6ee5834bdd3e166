// The program that publishes to BullMQ and waits for every result: measure.py, in Node.
//
// Results come by QueueEvents: `job.waitUntilFinished` is the same with one more call to Redis for each task.

import { createRequire } from "node:module";

const { Queue, QueueEvents } = createRequire(process.env.PEERS_NODE)("bullmq");
const want = JSON.parse(process.env.PEERS_TURN);

const RESULT_TIMEOUT_MS = 60_000;
// Adds that are under way at once, at most: their commands share round trips.
const ADDS_AT_ONCE = 200;

const emit = (event, values = {}) => console.log(JSON.stringify({ event, ...values }));
/** The input of a task: another text for each, all of one size as JSON. */
const input = (number) => String(number).padStart(want.size_bytes - 2, "x");
const prefix = `{${want.name}}`;

const queue = new Queue(want.name, {
  connection: { url: want.redis },
  prefix,
  // The events are a bounded stream: one that is too short would drop results while the publisher is busy.
  streams: { events: { maxLen: 20 * (want.tasks + want.warm_up_tasks) } },
});
const events = new QueueEvents(want.name, {
  connection: { url: want.redis, maxRetriesPerRequest: null },
  prefix,
  // From the first event of this queue, which is new: no result is missed while this connects.
  lastEventId: "0-0",
});
for (const source of [queue, events]) source.on("error", (error) => console.error(`${error.name}: ${error.message}`));

/** Tasks that have no result yet: job id to what hears of it. Ids are ours, so that no result comes before its waiter. */
const waiting = new Map();
let lastResult = 0;
events.on("completed", ({ jobId, returnvalue }) => {
  const settle = waiting.get(jobId);
  if (!settle) return;
  waiting.delete(jobId);
  lastResult = performance.now();
  settle(returnvalue, null);
});
events.on("failed", ({ jobId, failedReason }) => waiting.get(jobId)?.(undefined, new Error(failedReason)));

let round = 0;

/** The job of a task, and the promise of its result's instant. */
function task(number) {
  const jobId = `${round}-${number}`;
  const data = input(number);
  const result = new Promise((resolve, reject) => {
    waiting.set(jobId, (value, error) => {
      if (error) reject(error);
      else if (value !== data) reject(new Error(`task ${number} was answered with ${JSON.stringify(value).slice(0, 80)}`));
      else resolve(lastResult);
    });
  });
  // One that fails before anybody waits for it is heard of all the same, by `within`.
  result.catch(() => {});
  return { job: { name: "noop", data, opts: { jobId } }, result };
}

/** What a promise comes to, or an error when nothing at all has come for too long. */
async function within(promise) {
  let timer;
  const begin = performance.now();
  const silence = new Promise((_, reject) => {
    const look = () => {
      const quiet = performance.now() - Math.max(begin, lastResult);
      if (quiet < RESULT_TIMEOUT_MS) timer = setTimeout(look, RESULT_TIMEOUT_MS - quiet);
      else reject(new Error(`${waiting.size} results have not come for ${RESULT_TIMEOUT_MS} ms`));
    };
    timer = setTimeout(look, RESULT_TIMEOUT_MS);
  });
  try {
    return await Promise.race([promise, silence]);
  } finally {
    clearTimeout(timer);
  }
}

/** Seconds from the first publish to the last result. */
async function bulk(tasks, batch) {
  round += 1;
  const begin = performance.now();
  const results = [];
  let next = 0;
  const publishers = Array.from({ length: batch > 1 ? 2 : ADDS_AT_ONCE }, async () => {
    while (next < tasks) {
      const first = next;
      next = Math.min(tasks, first + batch);
      const made = Array.from({ length: next - first }, (_, index) => task(first + index));
      results.push(...made.map((one) => one.result));
      if (batch > 1) await queue.addBulk(made.map((one) => one.job));
      else await queue.add(made[0].job.name, made[0].job.data, made[0].job.opts);
    }
  });
  await within(Promise.all(publishers).then(() => Promise.all(results)));
  return (lastResult - begin) / 1000;
}

/** Milliseconds from when each task was due to when its result was in the publisher's hands, in order of size. */
async function paced(perSecond, seconds) {
  round += 1;
  const first = performance.now() + 50;
  const waits = [];
  for (let number = 0; number < Math.floor(perSecond * seconds); number += 1) {
    const due = first + (number * 1000) / perSecond;
    const ahead = due - performance.now();
    if (ahead > 0) await new Promise((resolve) => setTimeout(resolve, ahead));
    const { job, result } = task(number);
    const added = queue.add(job.name, job.data, job.opts);
    waits.push(Promise.all([added, result]).then(([, at]) => at - due));
  }
  return (await within(Promise.all(waits))).sort((one, other) => one - other);
}

const percentile = (ordered, share) => ordered[Math.max(0, Math.ceil(ordered.length * share) - 1)];

try {
  await within(Promise.all([queue.waitUntilReady(), events.waitUntilReady()]));
  const batch = want.settings.batch;
  await bulk(want.warm_up_tasks, batch);
  emit("begin");
  emit("bulk", { tasks: want.tasks, seconds: await bulk(want.tasks, batch) });
  if (want.latency_s > 0) {
    const waits = await paced(want.rate, want.latency_s);
    const [p50_ms, p99_ms] = [percentile(waits, 0.5), percentile(waits, 0.99)];
    emit("latency", { tasks: waits.length, p50_ms, p99_ms, max_ms: waits.at(-1) });
  }
  emit("end");
  await Promise.all([queue.close(), events.close()]);
  process.exit(0);
} catch (error) {
  emit("failed", { reason: `${error.name}: ${error.message}` });
  process.exit(1);
}
