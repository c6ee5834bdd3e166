//! Hands tasks over to a page queue: published, confirmed, then what they came by is acked.

use std::sync::Arc;

use taskyard_shared::broker::{self, Broker, Need, Verdict, publish_surely};
use taskyard_shared::{Envelope, Topology, messages};
use tokio_util::sync::CancellationToken;
use tracing::warn;

use super::label::{Label, Line};
use crate::held::Held;
use crate::planner::Away;

/// Tasks of one line on their way to its queue, page by page.
pub(super) struct Pages {
    pub slot: usize,
    /// Shard and number of the queue.
    pub queue: (u32, u32),
    pub line: Line,
    pub pages: Vec<Vec<Held>>,
    pub tasks: u64,
    pub work_us: u64,
    /// What they take in memory.
    pub bytes: usize,
}

impl Pages {
    /// With what is to come behind them.
    pub fn append(&mut self, more: Self) {
        self.pages.extend(more.pages);
        self.tasks += more.tasks;
        self.work_us = self.work_us.saturating_add(more.work_us);
        self.bytes = self.bytes.saturating_add(more.bytes);
    }
}

/// What became of them.
pub(crate) struct Written {
    pub slot: usize,
    /// So many were on their way, with so many bytes.
    pub tasks: u64,
    pub bytes: usize,
    /// These cannot be written as a message: they wait on where they were.
    pub unwritable: Vec<Held>,
    /// Pages that were not written for that, and what was to be on them.
    pub pages: u64,
    pub away: Away,
}

/// In their order, so many to a page, with inputs of so many bytes together; a larger task is a page of its own.
pub(super) fn divide(tasks: Vec<Held>, most: usize, most_bytes: usize) -> Vec<Vec<Held>> {
    let mut pages: Vec<Vec<Held>> = Vec::new();
    let mut bytes = 0;
    for task in tasks {
        let size = task.envelope.input.get().len();
        match pages.last_mut() {
            Some(page) if page.len() < most && bytes + size <= most_bytes => {
                bytes += size;
                page.push(task);
            }
            _ => {
                bytes = size;
                pages.push(vec![task]);
            }
        }
    }
    pages
}

/// Until it is done, or closing: then nothing of it was acked, and it comes again.
pub(super) async fn write(
    broker: Arc<dyn Broker>,
    topology: Topology,
    closing: CancellationToken,
    Pages { slot, queue, line, pages, tasks: all, work_us, bytes }: Pages,
) -> Written {
    let (mut outgoing, mut receipts, mut unwritable) = (Vec::with_capacity(pages.len()), Vec::new(), Vec::new());
    let (mut unwritten, mut away) = (0, Away::default());
    for page in pages {
        let tasks = page.len() as u64;
        let expected = Label::shortly(page.iter().map(|task| task.expected));
        let label = Label { line: line.clone(), tasks, work_us: work_us / all.max(1) * tasks, expected };
        let of_page = label.away();
        let envelopes: Vec<&Envelope> = page.iter().map(|task| &*task.envelope).collect();
        let text = label.text().map_err(|failure| failure.to_string());
        let message = text.and_then(|label| {
            messages::page(&topology, queue, label, &envelopes).map_err(|failure| failure.to_string())
        });
        match message {
            Ok(message) => {
                outgoing.push((message, Need::Work));
                receipts.extend(page.into_iter().filter_map(|task| task.receipt));
            }
            Err(failure) => {
                warn!(%failure, "a page of the backlog cannot be written");
                unwritable.extend(page);
                unwritten += 1;
                away.add(of_page);
            }
        }
    }
    if publish_surely(&*broker, outgoing, &closing).await.is_ok() {
        broker::settle(receipts, Verdict::Ack).await;
    }
    Written { slot, tasks: all, bytes, unwritable, pages: unwritten, away }
}
