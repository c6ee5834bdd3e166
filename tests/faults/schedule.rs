//! A schedule among the load: it has a tick every two seconds, and each of them is to be caught up with. What a tick makes is a task
//! whose id is made from the schedule and the tick, so the executor's lines say which ticks there were.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::json;
use serde_json::value::RawValue;
use taskyard_shared::Timestamp;
use taskyard_shared::schedule::ScheduleOrder;
use uuid::Uuid;

use crate::ledger::{EXECUTED, Executed, Files, What, now_ms};
use crate::load::{AGAIN_AFTER, http, is_for_later};
use crate::yard::NAMESPACE;

pub const SCHEDULED: &str = "scheduled";

const NAME: &str = "ledger";
const TENANT: &str = "default";
const EVERY_S: u64 = 2;
/// The last ticks are waited for no longer than this.
const PATIENCE: Duration = Duration::from_secs(60);

/// From when until when each tick had to come, in milliseconds since 1970.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Scheduled {
    /// It stood by now.
    pub from: u64,
    /// It still stood.
    pub until: u64,
}

impl Scheduled {
    /// The tasks of the ticks that had to come.
    pub fn due(self) -> impl Iterator<Item = Uuid> {
        ticks(self.from, self.until)
    }
}

/// The tasks of all ticks in between, the first excluded and the last included.
fn ticks(from: u64, until: u64) -> impl Iterator<Item = Uuid> {
    let body = RawValue::NULL.to_owned();
    let order = ScheduleOrder::new(TENANT.into(), NAME.into(), false, body, Timestamp::from_micros(0));
    let seconds = from / 1000 + 1..=until / 1000;
    let ticks = seconds.filter(|second| second % EVERY_S == 0);
    ticks.map(move |second| order.tick_id(NAMESPACE, Timestamp::from_micros(second as i64 * 1_000_000)))
}

/// Who puts the schedule, and takes it away.
pub struct Client {
    url: String,
    http: reqwest::Client,
    files: Arc<Files>,
    from: u64,
}

impl Client {
    /// Once it stands.
    pub async fn put(api: &str, files: Arc<Files>) -> Self {
        let http = http();
        let url = format!("{api}/v1/schedules/{NAME}");
        let body = json!({
            "cron": format!("*/{EVERY_S} * * * * *"),
            "catch_up": "all",
            "task": {"model": "quick", "input": {"n": 0, "ms": 1}},
        });
        until_done(|| http.put(&url).json(&body)).await;
        Self { url, http, files, from: now_ms() }
    }

    /// Waits until every tick so far has run, then takes it away. When they do not come, the check will say so.
    pub async fn end(self) {
        let scheduled = Scheduled { from: self.from, until: now_ms() };
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < PATIENCE {
            let lines: Vec<Executed> = self.files.read(EXECUTED);
            let ended = lines.iter().filter(|line| line.what == What::Finished).map(|line| line.id);
            let ended: HashSet<Uuid> = ended.collect();
            if scheduled.due().all(|tick| ended.contains(&tick)) {
                break;
            }
            tokio::time::sleep(AGAIN_AFTER).await;
        }
        until_done(|| self.http.delete(&self.url)).await;
        self.files.write(SCHEDULED, &[scheduled]);
    }
}

async fn until_done(call: impl Fn() -> reqwest::RequestBuilder) {
    loop {
        match call().send().await {
            Ok(answer) if answer.status().is_success() => return,
            // What was carried out and not answered is not there any more.
            Ok(answer) if answer.status().as_u16() == 404 => return,
            Ok(answer) => {
                assert!(is_for_later(answer.status().as_u16()), "{answer:?}");
            }
            Err(_) => {}
        }
        tokio::time::sleep(AGAIN_AFTER).await;
    }
}

/// What is known of the ticks at the end.
#[derive(Clone, Debug, Default)]
pub struct Ticks {
    pub scheduled: Option<Scheduled>,
    /// By the ids of their tasks.
    pub executed: HashMap<Uuid, Vec<Executed>>,
}

impl Ticks {
    /// Takes out of `executed` what is of ticks.
    pub fn read(files: &Files, executed: &mut HashMap<Uuid, Vec<Executed>>) -> Self {
        let scheduled: Option<Scheduled> = files.read(SCHEDULED).pop();
        let Some(Scheduled { from, until }) = scheduled else { return Self::default() };
        // A tick may come before it is known that the schedule stands, and after it is asked to go; and early, by a clock that is ahead.
        let may_be = ticks(from.saturating_sub(120_000), until + 120_000);
        let executed = may_be.filter_map(|id| executed.remove_entry(&id)).collect();
        Self { scheduled, executed }
    }

    /// Ticks that had to come and did not run to their end.
    pub fn lost(&self) -> Vec<Uuid> {
        let ran =
            |id: &Uuid| self.executed.get(id).is_some_and(|lines| lines.iter().any(|line| line.what == What::Finished));
        self.scheduled.into_iter().flat_map(Scheduled::due).filter(|id| !ran(id)).collect()
    }

    /// When executions of one tick followed one another, in milliseconds since 1970.
    pub fn repeats(&self) -> impl Iterator<Item = (Uuid, u64, u64)> {
        self.executed.iter().flat_map(|(id, lines)| {
            let mut starts: Vec<u64> =
                lines.iter().filter(|line| line.what == What::Started).map(|line| line.at).collect();
            starts.sort_unstable();
            let pairs: Vec<(Uuid, u64, u64)> = starts.windows(2).map(|pair| (*id, pair[0], pair[1])).collect();
            pairs
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tick_that_did_not_run_is_lost_and_one_that_ran_twice_is_seen() {
        let scheduled = Scheduled { from: 9_500, until: 14_000 };
        let due: Vec<Uuid> = scheduled.due().collect();
        assert_eq!(due.len(), 3, "at 10, 12 and 14 s");
        let line = |id, what, at| Executed { at, what, id, attempt: 1, run: "r".into() };
        let ran = |id: Uuid| (id, vec![line(id, What::Started, 1), line(id, What::Finished, 2)]);
        let mut ticks = Ticks { scheduled: Some(scheduled), executed: due.iter().copied().map(ran).collect() };
        assert_eq!((ticks.lost(), ticks.repeats().count()), (vec![], 0));
        ticks.executed.get_mut(&due[1]).unwrap().pop();
        assert_eq!(ticks.lost(), [due[1]]);
        ticks.executed.get_mut(&due[1]).unwrap().push(line(due[1], What::Started, 7));
        assert_eq!(ticks.repeats().collect::<Vec<_>>(), [(due[1], 1, 7)]);
    }
}
