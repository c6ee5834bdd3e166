//! Schedules as anybody puts them.

use serde_json::value::RawValue;
use taskyard_shared::schedule::{Published, ScheduleOrder, decode_schedule};
use taskyard_shared::workflow::WorkflowOrder;
use taskyard_shared::{Carried, Topology, decode_tasks, messages};

use super::{check_refusal, now};

/// It is refused with a reason, or is one whose keeper reads it again, and whose ticks publish what intake takes.
pub fn check(bytes: &[u8]) {
    let schedule = match decode_schedule(bytes) {
        Ok(schedule) => schedule,
        Err(invalid) => return check_refusal(&invalid),
    };
    let topology = Topology::new("yard");
    let text = std::str::from_utf8(bytes).expect("it was read").trim().to_owned();
    let raw = RawValue::from_string(text).expect("it was read");
    let order = ScheduleOrder::new("t".into(), "n".into(), false, raw, now());
    let message = messages::schedule(&topology, &order).expect("it can be written down");
    let order = ScheduleOrder::read(&message.body).expect("what was written can be read");
    order.decoded().expect("what was taken once is taken again");

    let ticks = schedule.ticks.following(now(), 3);
    assert!(ticks.is_sorted_by(|one, next| one < next) && ticks.iter().all(|tick| *tick > now()), "{ticks:?}");
    let day = now().plus_ms(24 * 3600 * 1000);
    let due = schedule.ticks.due(now(), day, schedule.reach());
    assert!(due.fire.iter().all(|tick| now() < *tick && *tick <= day), "{due:?}");
    for tick in ticks {
        let published = order.publish(&schedule.work, "yard", tick, now()).expect("a tick publishes");
        let message = messages::tick(&topology, &published).expect("what it publishes can be written");
        match published {
            Published::Task(_) => {
                let task = decode_tasks(&message.body).expect("intake reads it").remove(0).expect("a task");
                assert_eq!(task.tenant.as_deref(), Some("t"));
            }
            Published::Workflow { .. } => {
                let (again, _) =
                    WorkflowOrder::read(&message.body, &Carried::default(), now()).expect("intake reads it");
                assert_eq!(again.tenant, "t");
            }
        }
    }
}
