//! Decides what runs next.
//!
//! [`planner`] is pure. Around it, one file for each step of a task's way: `intake` reads and takes in, `core` owns the
//! planner, `choose` finds the model, `admit` takes in or refuses, `dispatch` hands on, `returns` reads what comes back, `finish` ends what never runs,
//! `lost` finds what nobody holds. Beside them `load_watch` reads what workers say, `offers` keeps what that is room for,
//! `memory` keeps what is learnt, `control` and `quote` answer what gateways ask, `quotas` counts what tenants send, `signal` says
//! once a second how much waits and `wanted` how many workers that takes, `placing` tells workers with a
//! memory budget which models to hold, `mirror` has versions that are tried out run tasks a second time, `paging` keeps in the broker what memory is too small for, `workflow` runs the workflows of a shard and `schedule` keeps the schedules, and `shadow` says what other orders would have made of it.

mod admit;
mod ahead;
mod choose;
mod clock;
mod control;
mod core;
mod deploying;
mod depth;
mod dispatch;
mod finish;
mod held;
mod intake;
mod load_watch;
mod lost;
mod memory;
mod metrics;
mod mirror;
mod offers;
mod paging;
mod placing;
pub mod planner;
mod quotas;
mod quote;
mod returns;
mod room;
mod schedule;
mod service;
mod shadow;
mod shard;
mod signal;
pub mod simulate;
mod wanted;
mod watch;
mod workflow;

pub use service::Scheduler;
