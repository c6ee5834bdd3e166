//! The whole state as text, at the turns of a short history.

use insta::assert_snapshot;
use taskyard_scheduler::planner::{Arrival, Decision};

use super::{SECOND, arrival, dispatched, id, planner};

#[test]
fn a_history_of_two_models() {
    let mut planner = planner("cmu");
    planner.handle_load("sentiment", 1);
    let deadline_us = Some(60 * SECOND);
    let of = |model: &str, tenant: &str, task: Arrival| Arrival { model: model.into(), tenant: tenant.into(), ..task };
    planner.handle_arrival(of("sentiment", "shop", arrival(1, 4, 0.02)), 0).unwrap();
    planner.handle_arrival(of("sentiment", "bank", arrival(2, 4, 0.02)), SECOND).unwrap();
    planner.handle_arrival(of("sentiment", "bank", Arrival { deadline_us, ..arrival(3, 9, 1.0) }), SECOND).unwrap();
    planner.handle_arrival(of("ranker", "shop", arrival(4, 0, 30.0)), 2 * SECOND).unwrap();
    let not_before_us = Some(90 * SECOND);
    planner.handle_arrival(of("ranker", "shop", Arrival { not_before_us, ..arrival(5, 7, 30.0) }), 2 * SECOND).unwrap();
    assert_snapshot!("admitted", planner.describe());

    assert_eq!(dispatched(&mut planner, 3 * SECOND), id(1));
    assert_eq!(planner.poll_decision(3 * SECOND), None);
    assert_snapshot!("the_only_credit_is_taken", planner.describe());

    assert!(planner.handle_dispatch_failed(id(1)));
    planner.handle_load("sentiment", 2);
    assert_eq!(dispatched(&mut planner, 58 * SECOND), id(1));
    assert_eq!(dispatched(&mut planner, 58 * SECOND), id(2));
    assert!(planner.handle_completion(id(1), None));
    planner.handle_load("sentiment", 0);
    assert_snapshot!("workers_gone_and_a_deadline_near", planner.describe());

    let expired = Decision::Expire { id: id(3), model: "sentiment".into() };
    assert_eq!(planner.poll_decision(90 * SECOND), Some(expired));
    assert!(planner.handle_completion(id(2), None));
    assert!(planner.handle_cancel(id(4)));
    assert_snapshot!("one_model_is_left", planner.describe());

    planner.handle_load("ranker", 1);
    assert_eq!(dispatched(&mut planner, 91 * SECOND), id(5));
    assert!(planner.handle_completion(id(5), None));
    planner.handle_load("ranker", 0);
    assert_snapshot!("nothing_is_remembered", planner.describe());
}
