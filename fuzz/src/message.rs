//! Messages that roles send each other: what they are, is the same to the short way of reading and writing them and to serde.

use std::fmt::Debug;

use taskyard_shared::load::{Completion, Placement};
use taskyard_shared::schedule::ScheduleOrder;
use taskyard_shared::wire::{self, Get, Put};
use taskyard_shared::workflow::WorkflowOrder;
use taskyard_shared::{Envelope, TaskResult};

pub fn check(bytes: &[u8]) {
    check_as::<Envelope>(bytes);
    check_as::<TaskResult>(bytes);
    check_as::<Completion>(bytes);
    match wire::read_envelopes(bytes) {
        Ok(envelopes) => {
            assert!(!envelopes.is_empty(), "nobody acks a message of none");
            for envelope in envelopes {
                let _ = (envelope.fingerprint(), envelope.alias(), envelope.model().map(str::len));
            }
        }
        Err(unreadable) => assert!(["unreadable", "unsupported_version"].contains(&unreadable.code())),
    }
    let _ = WorkflowOrder::again(bytes);
    let _ = ScheduleOrder::read(bytes).map(|order| order.decoded().map(|_| ()));
    let _ = Placement::read(bytes);
}

fn check_as<T: Get + Put + Debug>(bytes: &[u8]) {
    let plain = serde_json::from_slice::<T>(bytes).ok();
    let short = wire::read::<T>(bytes).ok();
    assert_eq!(format!("{short:?}"), format!("{plain:?}"));
    let Some(message) = short else { return };
    let plain = serde_json::to_vec(&message).ok();
    let short = wire::write(&message).ok();
    assert_eq!(short.as_deref().map(String::from_utf8_lossy), plain.as_deref().map(String::from_utf8_lossy));
    if let Some(short) = short {
        let again = wire::read::<T>(&short).expect("what was written can be read");
        assert_eq!(format!("{again:?}"), format!("{message:?}"));
    }
}
