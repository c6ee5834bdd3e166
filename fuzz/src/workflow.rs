//! Workflows as anybody publishes them.

use std::sync::Arc;

use serde_json::value::RawValue;
use taskyard_shared::workflow::{Command, Ended, Machine, StepError, StepState, WorkflowOrder};
use taskyard_shared::{Carried, State, Topology, messages};

use super::{check_refusal, now};

/// Of one that is run to its end no more than so many tasks, with so much to work on.
const TASKS: usize = 2_000;
const INPUT_BYTES: usize = 1 << 20;

/// It is refused with a reason, or is one that its shard reads again, and that comes to an end.
pub fn check(bytes: &[u8]) {
    let (order, plan) = match WorkflowOrder::read(bytes, &Carried::default(), now()) {
        Ok(read) => read,
        Err(invalid) => return check_refusal(&invalid),
    };
    let fingerprint = order.fingerprint(&plan);
    let remaining = plan.remaining(|_| 1.0);
    assert!(remaining.len() == plan.len() && remaining.iter().all(|longest| (0.0..=1e6).contains(longest)));
    serde_json::to_vec(&order.queued(plan.clone())).expect("its record can be written");
    let message = messages::workflow(&Topology::new("yard"), 0, &order).expect("it can be sent on");
    let (_, again) = WorkflowOrder::again(&message.body).expect("its shard can read it");
    assert_eq!(order.fingerprint(&again), fingerprint);
    let plan = Arc::new(plan);
    for outcome in [State::Succeeded, State::Failed, State::Cancelled] {
        run(&plan, outcome);
    }
}

/// Every task ends so, as soon as it may begin. Then the workflow has ended.
fn run(plan: &Arc<taskyard_shared::workflow::Plan>, outcome: State) {
    let mut machine = Machine::new(plan.clone());
    machine.start();
    let (mut tasks, mut bytes) = (0, 0);
    while let Some(command) = machine.poll() {
        let Command::Submit { step, item, input } = command else { continue };
        (tasks, bytes) = (tasks + 1, bytes + input.get().len());
        if tasks > TASKS || bytes > INPUT_BYTES {
            return;
        }
        let (output, error) = match outcome {
            // What it was given, so that others are given it in their turn.
            State::Succeeded => (Some(input), None),
            _ => (None, Some(StepError { code: "handler_failed".into(), message: "as told".into() })),
        };
        machine.handle_ended(step, item, Ended { state: outcome, output, error, ..ended() });
    }
    assert!(machine.is_over(), "nothing is to be done, and it has not ended: {plan:?}");
    assert!(
        (0..plan.len() as u32).all(|step| machine.shown(step).is_some_and(|shown| shown.state != StepState::Queued))
    );
}

fn ended() -> Ended {
    let output: Option<Box<RawValue>> = None;
    Ended { state: State::Failed, output, error: None, attempt: 1, timings: Default::default() }
}
