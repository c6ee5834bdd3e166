export interface Task<I = unknown> {
  model: string;
  input: I;
  priority?: number;
  deadline_ms?: number;
}

export type State = "queued" | "dispatched" | "running" | "succeeded" | "failed" | "cancelled" | "expired" | "rejected";

export interface Result<O = unknown> {
  id: string;
  state: State;
  output: O | null;
  error: { code: string; message: string; retryable: boolean } | null;
}

const terminal: ReadonlySet<State> = new Set<State>(["succeeded", "failed", "cancelled", "expired", "rejected"]);

export class Client {
  constructor(private readonly api: string, private readonly send: typeof fetch = fetch) {}

  async submit<I>(task: Task<I>): Promise<string> {
    const response = await this.send(`${this.api}/v1/tasks`, { method: "POST", body: JSON.stringify(task) });
    if (response.status !== 202) throw new Error(`not accepted: ${response.status}`);
    const { id } = (await response.json()) as { id: string };
    return id;
  }

  async wait<O>(id: string): Promise<Result<O>> {
    for (;;) {
      const response = await this.send(`${this.api}/v1/tasks/${id}?wait=30s`);
      const result = (await response.json()) as Result<O>;
      if (terminal.has(result.state)) return result;
    }
  }
}
