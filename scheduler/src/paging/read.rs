//! Reads one page queue: the beginning of its line is held here, and the next pages come as the tasks of the first are handed on.
//!
//! The prefetch is what bounds it. What was read and is not wanted yet waits here, and goes back when the broker would lose patience.

use std::sync::Arc;
use std::time::Duration;

use futures_util::FutureExt;
use taskyard_shared::broker::{self, Acker, Broker, BrokerError, Delivery, Need, Receipt, Verdict, publish_surely};
use taskyard_shared::dead::{self, Letter};
use taskyard_shared::store::{Accepted, Store};
use taskyard_shared::{Envelope, Topology, envelope, messages, wire};
use tokio::sync::{mpsc, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, warn};

use super::label::{Label, Line};
use crate::core::Event;
use crate::held::Held;
use crate::metrics::Metrics;
use crate::planner::Away;

/// Most pages read at once: as soon as there is one of a line, the line goes on.
const READ: usize = 1;
/// Most pages given back together.
const GIVEN_BACK: usize = 64;

/// Pages that came back to memory.
pub(crate) struct PagedIn {
    /// The queue that they came from.
    pub slot: usize,
    /// What stands on the last of them.
    pub line: Option<Line>,
    pub pages: u64,
    pub away: Away,
    pub tasks: Vec<Held>,
    /// Those that somebody asked to cancel.
    pub unwanted: Vec<Held>,
}

pub(super) struct Reader {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub metrics: Metrics,
    pub slot: usize,
    pub queue: String,
    pub prefetch: u16,
    /// More may come in.
    pub wanted: watch::Receiver<bool>,
    pub events: mpsc::Sender<Event>,
    pub closing: CancellationToken,
    /// For how long a page may be held.
    pub patience: Duration,
}

impl Reader {
    /// Reads until the session is cut. Then, or when it is dropped, all goes back that was not acked.
    pub async fn run(mut self) -> Result<(), BrokerError> {
        let mut consumer = self.broker.consume(&self.queue, self.prefetch).await?;
        let acker = consumer.acker();
        loop {
            let mut pages = tokio::select! {
                biased;
                () = self.closing.cancelled() => break,
                pages = consumer.next_batch(READ) => pages?,
            };
            match self.is_wanted().await {
                Some(true) => {}
                Some(false) => {
                    // Those behind have been here for as long.
                    while let Some(more) = consumer.next_batch(GIVEN_BACK).now_or_never() {
                        pages.extend(more?);
                    }
                    acker.settle(pages.iter().map(|page| page.tag).collect(), Verdict::Requeue).await;
                    continue;
                }
                None => break,
            }
            let paged_in = self.read(pages, &acker).await;
            if self.events.send(Event::PagedIn(paged_in)).await.is_err() {
                break;
            }
        }
        // With its consumer all that is not acked goes back, and what is being dispatched would run twice.
        std::future::pending().await
    }

    /// Waits until more may come in; `false` when that takes too long, and nothing when it is over.
    async fn is_wanted(&mut self) -> Option<bool> {
        tokio::select! {
            biased;
            wanted = self.wanted.wait_for(|wanted| *wanted) => wanted.ok().map(|_| true),
            () = tokio::time::sleep(self.patience) => Some(false),
            () = self.closing.cancelled() => None,
        }
    }

    async fn read(&self, pages: Vec<Delivery>, acker: &Arc<dyn Acker>) -> PagedIn {
        let mut all = PagedIn {
            slot: self.slot,
            line: None,
            pages: pages.len() as u64,
            away: Away::default(),
            tasks: Vec::new(),
            unwanted: Vec::new(),
        };
        for page in pages {
            let label = Label::of(&page.properties);
            if let Some(label) = &label {
                all.away.add(label.away());
                all.line = Some(label.line.clone());
            }
            match wire::read_all::<Envelope>(&page.body) {
                Ok(envelopes) => self.take(page, label, envelopes, acker, &mut all.tasks).await,
                Err(failure) => {
                    let letter = self.letter("unreadable", &failure.to_string(), page.body.clone());
                    self.bury(vec![letter], Receipt::split(page.tag, acker, 1)).await;
                }
            }
        }
        self.look_up(&mut all).await;
        all
    }

    async fn take(
        &self,
        page: Delivery,
        label: Option<Label>,
        envelopes: Vec<Envelope>,
        acker: &Arc<dyn Acker>,
        tasks: &mut Vec<Held>,
    ) {
        let receipts = Receipt::split(page.tag, acker, envelopes.len());
        if envelopes.is_empty() {
            acker.settle(vec![page.tag], Verdict::Ack).await;
        }
        let (mut letters, mut of_letters) = (Vec::new(), Vec::new());
        let model = label.as_ref().map_or_else(String::new, |label| label.line.model.clone());
        let mut expected = label.iter().flat_map(Label::expected);
        for (at, (envelope, receipt)) in envelopes.into_iter().zip(receipts).enumerate() {
            let expected = expected.next().flatten();
            if envelope.v == envelope::VERSION {
                tasks.push(Held {
                    envelope: Box::new(envelope),
                    receipt: Some(receipt),
                    since: Instant::now(),
                    is_known: true,
                    page: Some(self.slot),
                    expected,
                    model: model.clone(),
                });
                continue;
            }
            let detail = format!("an envelope of version {}, of which this scheduler knows nothing", envelope.v);
            let members = dead::members(&page.body).unwrap_or_default();
            let body = members.get(at).map_or(page.body.clone(), |member| page.body.slice_ref(member.get().as_bytes()));
            letters.push(self.letter("unsupported_version", &detail, body));
            of_letters.push(receipt);
        }
        if !letters.is_empty() {
            self.bury(letters, of_letters).await;
        }
    }

    /// What became of the tasks while they were away stands in their records.
    async fn look_up(&self, all: &mut PagedIn) {
        if all.tasks.is_empty() {
            return;
        }
        let accepted = match self.store.accept(all.tasks.iter().map(Held::accept_again).collect()).await {
            Ok(accepted) => accepted,
            Err(failure) => {
                debug!(%failure, "tasks come back without a look at their records");
                self.metrics.store_failed("accept");
                return;
            }
        };
        let (mut outgoing, mut done) = (Vec::new(), Vec::new());
        let mut wanted = Vec::with_capacity(all.tasks.len());
        for (mut task, accepted) in all.tasks.drain(..).zip(accepted) {
            match accepted {
                Accepted::New | Accepted::Conflict(_) => wanted.push(task),
                Accepted::Unwanted(record) | Accepted::Known(record) if record.state.is_terminal() => {
                    // Whoever ended it may not have come to tell.
                    if let Some(reply) = &task.envelope.reply {
                        outgoing.extend(messages::result(reply, &record).ok().map(|message| (message, Need::Reply)));
                    }
                    done.extend(task.receipt);
                }
                Accepted::Unwanted(_) => all.unwanted.push(task),
                // Whatever state it shows: it may have come back from a worker whose record of that was not written, or was written
                // late, and then this is all that there is of it. One copy too many is found out by claims.
                Accepted::Known(record) => {
                    task.envelope.priority = record.priority;
                    wanted.push(task);
                }
            }
        }
        all.tasks = wanted;
        if publish_surely(&*self.broker, outgoing, &self.closing).await.is_ok() {
            broker::settle(done, Verdict::Ack).await;
        }
    }

    fn letter(&self, code: &str, detail: &str, body: bytes::Bytes) -> (broker::Message, Need) {
        warn!(code, detail, "a page of the backlog cannot be read");
        self.metrics.dead_lettered(code);
        (Letter::of_internal(code, detail, body).message(&self.topology), Need::Work)
    }

    async fn bury(&self, letters: Vec<(broker::Message, Need)>, receipts: Vec<Receipt>) {
        if publish_surely(&*self.broker, letters, &self.closing).await.is_ok() {
            broker::settle(receipts, Verdict::Ack).await;
        }
    }
}
