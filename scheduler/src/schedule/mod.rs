//! Schedules: kept in a queue of their own, and fired when their time comes.
//!
//! The broker owns a schedule for as long as there is one: its message is held unacked by the scheduler of shard 0. Whatever
//! changes of it, its ticks among that, is published as a new message with a larger revision before the old one is acked, so
//! that whoever takes over finds where it stood. A tick is published before the schedule says that it is dealt with, under an id
//! made of schedule and tick: what is fired again after a crash is known by its id.

mod answer;
mod entry;
mod fire;
mod keeper;

use taskyard_shared::control::{ScheduleAsk, Told};
use tokio::sync::oneshot;

pub(crate) use keeper::Keeper;

/// What somebody asks about schedules, and who waits to hear of it.
pub(crate) type AskedOfSchedules = (ScheduleAsk, oneshot::Sender<Told>);
