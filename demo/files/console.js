"use strict";

const body = document.getElementById("models");
const status = document.getElementById("status");

function row(queue) {
  const line = document.createElement("tr");
  line.classList.toggle("late", queue.oldest_age_ms > 60000);
  for (const value of [queue.model, queue.waiting, queue.running, `${Math.round(queue.oldest_age_ms / 1000)} s`]) {
    const cell = document.createElement("td");
    cell.textContent = value;
    line.append(cell);
  }
  return line;
}

async function refresh() {
  try {
    const response = await fetch("/v1/queues", { headers: { accept: "application/json" } });
    if (!response.ok) throw new Error(`HTTP ${response.status}`);
    const queues = await response.json();
    body.replaceChildren(...queues.map(row));
    status.textContent = `updated ${new Date().toLocaleTimeString()}`;
  } catch (error) {
    status.textContent = `not reachable: ${error.message}`;
  }
}

setInterval(refresh, 2000);
refresh();
