// Publishes tasks to Taskyard over AMQP and prints their results. Needs nothing but amqplib.
//
//   npm install amqplib
//   node publish.mjs sentiment '{"text": "Shares fall after the warning"}'
//   node publish.mjs pause '{"service_ms": 1}' 1000
//
// It declares its own reply queue and nothing else. AMQP_URL and TASKYARD_NAMESPACE say where the yard is.

import { randomUUID } from 'node:crypto';
import amqplib from 'amqplib';

const [model, input, count = '1'] = process.argv.slice(2);
if (!model || !input) {
  console.error('usage: node publish.mjs MODEL INPUT [COUNT]');
  process.exit(2);
}
const namespace = process.env.TASKYARD_NAMESPACE ?? 'taskyard';

const connection = await amqplib.connect(process.env.AMQP_URL ?? 'amqp://guest:guest@127.0.0.1:5672/');
const channel = await connection.createConfirmChannel();
const { queue: replies } = await channel.assertQueue('', { exclusive: true });

const waiting = new Set();
let failed = 0;
let done;
const finished = new Promise((resolve) => (done = resolve));
await channel.consume(
  replies,
  (message) => {
    // A result may be told twice: the id says which.
    if (message && waiting.delete(message.properties.correlationId)) {
      const result = JSON.parse(message.content);
      if (result.state !== 'succeeded') failed += 1;
      console.log(JSON.stringify(result));
      if (waiting.size === 0) done();
    }
  },
  { noAck: true },
);

// A mandatory message that no queue takes comes back.
channel.on('return', () => {
  console.error(`no yard reads the exchange ${namespace}.tasks`);
  process.exit(1);
});
const total = Number(count);
const ids = Array.from({ length: total }, () => randomUUID());
ids.forEach((id) => waiting.add(id));
for (const id of ids) {
  channel.publish(`${namespace}.tasks`, model, Buffer.from(JSON.stringify({ model, input: JSON.parse(input) })), {
    contentType: 'application/json',
    deliveryMode: 2,
    mandatory: true,
    messageId: id,
    correlationId: id,
    replyTo: replies,
  });
}
await channel.waitForConfirms();
await finished;
await connection.close();
process.exit(failed ? 1 : 0);
