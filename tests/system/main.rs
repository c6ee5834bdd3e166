//! The real binary on real RabbitMQ and Redis: what a publisher and an operator rely on.

#[path = "../harness/mod.rs"]
mod harness;

mod clients;
mod control;
mod dead;
mod faults;
mod order;
mod paging;
mod poison;
mod refusals;
mod rolling;
mod secrets;
mod shadow;
mod tls;
mod yard;
