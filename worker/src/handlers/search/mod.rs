//! The handler `search`: what a hyper-parameter search by successive halving is, beside its trainings.
//!
//! A search is a workflow: `sample` makes candidates and says what each rung may spend, a `training` task for each candidate
//! spends it, `halve` keeps the best, whose trainings go on from where they were, and `report` tells what came of all. Nothing here
//! trains, draws at random or remembers: the same order has the same answer, whoever carries it out, and any model can be
//! searched over whose input takes parameters and whose output has a number.

mod halving;
mod order;
mod sample;

use async_trait::async_trait;
use taskyard_shared::process::settings::SearchSettings;

use self::order::Order;
use crate::handler::{Answer, Handler, Job};
use crate::handlers::answer::{bad_input, written};

/// Candidates in, candidates out.
pub struct SearchHandler {
    max_candidates: usize,
}

impl SearchHandler {
    pub fn new(settings: &SearchSettings) -> Self {
        Self { max_candidates: settings.max_candidates }
    }

    fn carry_out(&self, job: &Job) -> Answer {
        match Order::read(&job.input, self.max_candidates).map_err(bad_input)? {
            Order::Sample(order) => written(&sample::plan(order).map_err(bad_input)?),
            Order::Halve(order) => written(&halving::halve(order).map_err(bad_input)?),
            Order::Report(order) => written(&halving::report(order).map_err(bad_input)?),
        }
    }
}

#[async_trait]
impl Handler for SearchHandler {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        batch.iter().map(|job| self.carry_out(job)).collect()
    }
}
