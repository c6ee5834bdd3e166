//! The names of everything in the broker and the store. No other file spells one.

/// Names under one namespace, so that several yards share a broker and a store.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Topology {
    namespace: String,
}

impl Topology {
    /// `namespace` is checked where settings are read: `[a-z0-9][a-z0-9._-]*`.
    pub fn new(namespace: impl Into<String>) -> Self {
        Self { namespace: namespace.into() }
    }

    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    fn name(&self, rest: &str) -> String {
        [&self.namespace, ".", rest].concat()
    }

    /// Topic exchange that publishers use; everything in it goes to [`intake`](Self::intake).
    pub fn tasks_exchange(&self) -> String {
        self.name("tasks")
    }

    /// Topic exchange of lifecycle events, key `task.<state>.<model>`.
    pub fn events_exchange(&self) -> String {
        self.name("events")
    }

    /// Tasks as published.
    pub fn intake(&self) -> String {
        self.name("intake")
    }

    /// Envelopes that come back to be tried again, by whichever scheduler takes them.
    pub fn retry(&self) -> String {
        self.name("retry")
    }

    /// Envelopes that the scheduler of a shard held for long and sent to itself.
    pub fn round(&self, shard: u32) -> String {
        self.name(&format!("round.{shard}"))
    }

    /// Workflows that are run by the scheduler of a shard.
    pub fn workflows(&self, shard: u32) -> String {
        self.name(&format!("workflows.{shard}"))
    }

    /// Results of the steps of workflows that the scheduler of a shard runs.
    pub fn steps(&self, shard: u32) -> String {
        self.name(&format!("steps.{shard}"))
    }

    /// Schedules, each a message; the scheduler of shard 0 holds them all.
    pub fn schedules(&self) -> String {
        self.name("schedules")
    }

    /// Pages of the backlog that the scheduler of a shard keeps out of its memory; each of these queues holds what has one order.
    pub fn page(&self, shard: u32, number: u32) -> String {
        self.name(&format!("page.{shard}.{number}"))
    }

    /// Envelopes for the workers of one model.
    pub fn ready(&self, model: &str) -> String {
        [&self.namespace, ".ready.", model].concat()
    }

    /// What workers tell the scheduler of a shard of the attempts that it dispatched, many to a message.
    pub fn completions(&self, shard: u32) -> String {
        match shard {
            0 => self.name("completions"),
            _ => self.name(&format!("completions.{shard}")),
        }
    }

    /// What gateways ask of the scheduler of a shard.
    pub fn control(&self, shard: u32) -> String {
        self.name(&format!("control.{shard}"))
    }

    /// What is no longer tried, with its reason.
    pub fn dead(&self) -> String {
        self.name("dead")
    }

    /// What is to be sent to tasks' addresses.
    pub fn webhooks(&self) -> String {
        self.name("webhooks")
    }

    /// The same, once it was tried in vain: it waits for its time.
    pub fn webhooks_again(&self) -> String {
        self.name("webhooks.again")
    }

    /// Whoever holds this lock looks through the dead letters.
    pub fn dead_lock(&self) -> String {
        self.name("dead.looked-through")
    }

    /// Results for one gateway or client; exclusive to it.
    pub fn replies(&self, owner: &str) -> String {
        self.name(&format!("replies.{owner}"))
    }

    /// Whoever holds this lock is the active scheduler of a shard.
    pub fn scheduler_lock(&self, shard: u32) -> String {
        match shard {
            0 => self.name("scheduler.active"),
            _ => self.name(&format!("scheduler.active.{shard}")),
        }
    }

    /// A key of the store. Everything shares one hash tag, so that a script may touch several keys of a cluster.
    pub fn key(&self, rest: &str) -> String {
        format!("{}:{{0}}:{rest}", self.namespace)
    }
}
