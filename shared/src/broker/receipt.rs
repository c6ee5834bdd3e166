//! A part of a delivery. One message may carry several tasks: it is acked when the last of them is settled.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::{Acker, Tag, Verdict};

struct Whole {
    tag: Tag,
    acker: Arc<dyn Acker>,
    unsettled: AtomicUsize,
}

/// One task's part of a message. Dropping one unsettled leaves the message unacked: it comes again.
pub struct Receipt(Arc<Whole>);

impl Receipt {
    /// As many receipts as the message carries tasks.
    pub fn split(tag: Tag, acker: &Arc<dyn Acker>, tasks: usize) -> Vec<Receipt> {
        let whole = Arc::new(Whole { tag, acker: acker.clone(), unsettled: AtomicUsize::new(tasks) });
        (0..tasks).map(|_| Receipt(whole.clone())).collect()
    }
}

/// Settles parts, with one call for each consumer among them. With [`Verdict::Ack`] a message goes once all its parts
/// are settled; with [`Verdict::Requeue`] it goes back as a whole. Answers how many could not be settled, because their
/// session is gone: those come again.
pub async fn settle(receipts: Vec<Receipt>, verdict: Verdict) -> usize {
    let mut complete: Vec<Arc<Whole>> = receipts
        .into_iter()
        .filter(|part| match verdict {
            Verdict::Ack => part.0.unsettled.fetch_sub(1, Ordering::AcqRel) == 1,
            Verdict::Requeue => true,
        })
        .map(|part| part.0)
        .collect();
    let mut void = 0;
    while let Some(first) = complete.last().map(|whole| whole.acker.clone()) {
        let (same, others): (Vec<_>, Vec<_>) =
            complete.into_iter().partition(|whole| Arc::ptr_eq(&whole.acker, &first));
        complete = others;
        let mut tags: Vec<Tag> = same.iter().map(|whole| whole.tag).collect();
        tags.sort_unstable();
        tags.dedup();
        void += first.settle(tags, verdict).await;
    }
    void
}
