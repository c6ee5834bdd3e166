//! What tasks say while they run, and that somebody asked to cancel some.

use bytes::Bytes;

use super::*;
use crate::store::stream::STREAM_BYTES;
use crate::store::{Append, Appended, Part, ReadStream, Said, Stream};

fn partial(text: &str) -> Said {
    Said::Partial(Bytes::copy_from_slice(text.as_bytes()))
}

fn progress(text: &str) -> Said {
    Said::Progress(Bytes::copy_from_slice(text.as_bytes()))
}

fn part(number: u64, text: &str) -> Part {
    Part { number, body: Bytes::copy_from_slice(text.as_bytes()) }
}

impl Desk {
    async fn say(&self, id: TaskId, attempt: u32, nonce: u128, said: Vec<Said>) -> Appended {
        only(self.0.append(vec![Append { id, attempt, nonce, said }]).await.expect("append"))
    }

    async fn hear(&self, id: TaskId, after: u64, most: usize) -> Stream {
        only(self.0.streams(vec![ReadStream { id, after, most }]).await.expect("streams"))
    }
}

pub async fn what_a_task_says_is_read_in_order_from_any_place(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, own) = (TaskId::new(), nonce());
    desk.open(id).await;
    assert_eq!(desk.hear(id, 0, 10).await, Stream::default(), "it has said nothing");
    desk.run(id, own, LONG_MS, 1).await;
    let said = vec![partial("1"), progress("2"), partial("3"), progress("4"), partial("5")];
    assert_eq!(desk.say(id, 1, own, said).await, Appended::Kept);
    assert_eq!(desk.say(id, 1, own, vec![partial("\0\u{e9}")]).await, Appended::Kept);
    let all = Stream {
        attempt: 1,
        partials: vec![part(1, "1"), part(3, "3"), part(5, "5"), part(6, "\0\u{e9}")],
        progress: Some(part(4, "4")),
        more: false,
        last: 6,
    };
    assert_eq!(desk.hear(id, 0, 10).await, all);
    assert_eq!(desk.hear(id, 3, 10).await.partials, all.partials[2..]);
    assert_eq!(desk.hear(id, 4, 10).await.partials, all.partials[2..], "there need be none of that number");
    assert_eq!(desk.hear(id, 6, 10).await, Stream { partials: Vec::new(), ..all.clone() });
    assert_eq!(desk.hear(id, 0, 0).await, Stream { partials: Vec::new(), ..all.clone() }, "the progress alone");
    let first = desk.hear(id, 0, 3).await;
    assert_eq!((first.partials.len(), first.more), (3, true));
    assert!(!desk.hear(id, 0, 4).await.more);
    // It is not the end of it when the task has ended.
    assert!(matches!(desk.settle(1, own, &succeeded(id, 1, "1")).await, Settled::Done { .. }));
    assert_eq!(desk.hear(id, 0, 10).await, all);
}

pub async fn only_the_attempt_that_has_a_task_speaks_for_it(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, first, second) = (TaskId::new(), nonce(), nonce());
    desk.open(id).await;
    // A first attempt that was not claimed may, until another one does.
    assert_eq!(desk.say(id, 1, first, vec![partial("a")]).await, Appended::Kept);
    assert_eq!(desk.say(id, 1, second, vec![partial("no")]).await, Appended::Stale);
    desk.run(id, second, 0, 1).await;
    assert_eq!(desk.say(id, 1, first, vec![partial("no")]).await, Appended::Stale, "another has it");
    assert_eq!(desk.say(id, 1, second, vec![partial("no")]).await, Appended::Stale, "this attempt is another's");
    let third = nonce();
    desk.run(id, third, LONG_MS, 2).await;
    assert_eq!(desk.say(id, 2, third, vec![partial("b"), progress("c")]).await, Appended::Kept);
    assert_eq!(desk.say(id, 1, first, vec![partial("no")]).await, Appended::Stale);
    let expected =
        Stream { attempt: 2, partials: vec![part(2, "b")], progress: Some(part(3, "c")), more: false, last: 3 };
    assert_eq!(desk.hear(id, 0, 10).await, expected, "what the first said counts no more, and the numbers go on");
    assert!(matches!(desk.settle(2, third, &succeeded(id, 2, "1")).await, Settled::Done { .. }));
    assert_eq!(desk.say(id, 2, third, vec![partial("no")]).await, Appended::Stale, "it has ended");
    assert_eq!(desk.say(id, 3, nonce(), vec![partial("no")]).await, Appended::Stale, "for every attempt");
    assert_eq!(desk.hear(id, 0, 10).await, expected);
}

pub async fn a_stream_that_is_full_says_where_it_was_cut(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, own) = (TaskId::new(), nonce());
    let half = "x".repeat(STREAM_BYTES / 2);
    assert_eq!(desk.say(id, 1, own, vec![partial(&half)]).await, Appended::Kept, "a record is not needed");
    assert_eq!(desk.say(id, 1, own, vec![partial(&half), partial("y"), partial("z")]).await, Appended::Full);
    assert_eq!(desk.say(id, 1, own, vec![partial("z"), progress("still")]).await, Appended::Full);
    let heard = desk.hear(id, 0, 10).await;
    assert_eq!((heard.partials.len(), heard.more), (1, true), "a large part is read by itself");
    let rest = desk.hear(id, 1, 10).await;
    assert_eq!(rest.partials.iter().map(|part| (part.number, part.body.len())).collect::<Vec<_>>(), [(2, half.len())]);
    let rest = desk.hear(id, 2, 10).await;
    assert_eq!(rest.partials, [part(3, "")], "one mark, and nothing behind it");
    assert_eq!(rest.progress, Some(part(4, "still")));
    // The next attempt has a stream of its own.
    assert_eq!(desk.say(id, 2, nonce(), vec![partial("b")]).await, Appended::Kept);
    assert_eq!(desk.hear(id, 0, 10).await.partials, [part(5, "b")]);
}

pub async fn many_tasks_speak_in_one_call(store: Arc<dyn Store>) {
    let ids: Vec<TaskId> = (0..700).map(|_| TaskId::new()).collect();
    let append = |(at, id): (usize, &TaskId)| {
        let said = (0..at % 4).map(|part| partial(&format!("{at}:{part}"))).collect();
        Append { id: *id, attempt: 1, nonce: at as u128, said }
    };
    let appended = store.append(ids.iter().enumerate().map(append).collect()).await.expect("append");
    assert!(appended.iter().all(|answer| *answer == Appended::Kept) && appended.len() == ids.len());
    let reads = ids.iter().map(|id| ReadStream { id: *id, after: 1, most: 100 }).collect();
    let heard = store.streams(reads).await.expect("streams");
    for (at, stream) in heard.iter().enumerate() {
        let expected: Vec<Part> =
            (1..at % 4).map(|number| part(number as u64 + 1, &format!("{at}:{number}"))).collect();
        assert_eq!(stream.partials, expected, "{at}");
    }
    assert!(store.append(Vec::new()).await.expect("append").is_empty());
    assert!(store.streams(Vec::new()).await.expect("streams").is_empty());
}

pub async fn who_looks_is_told_that_something_is_to_be_cancelled(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, own) = (TaskId::new(), nonce());
    desk.open(id).await;
    desk.run(id, own, LONG_MS, 1).await;
    let before = desk.0.cancellations().await.expect("cancellations");
    desk.cancel(id).await;
    assert!(desk.0.cancellations().await.expect("cancellations") > before);
    // Others may cancel beside this check, so only that it does not go back can be said.
    assert!(desk.0.cancellations().await.expect("cancellations") > before);
}
