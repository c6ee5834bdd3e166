//! Which model runs a task that leaves a choice, and what its result says of that.

use taskyard_shared::ChoiceReason;

use super::*;

fn model(name: &str, expected_ms: f64, quality: Option<f64>) -> ModelSpec {
    ModelSpec { expected_ms: Some(expected_ms), quality, ..spec(name) }
}

/// The scheduler knows of the workers of these.
async fn seen(yard: &Yard, models: &[ModelSpec]) {
    let row = |spec: &ModelSpec| format!("taskyard_model_workers{{model=\"{}\"}} 1", spec.name);
    let all = || yard.registry.render().is_ok_and(|text| models.iter().all(|spec| text.contains(&row(spec))));
    eventually("workers", all).await;
}

fn reason(yard: &Yard, id: &Uuid) -> Option<ChoiceReason> {
    yard.result(id).choice.as_ref().map(|choice| choice.reason)
}

fn ran_by<'a>(yard: &'a Yard, id: &Uuid) -> &'a str {
    yard.result(id).model.as_deref().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_capability_goes_to_the_cheapest_that_is_good_enough_and_in_time() {
    let mut yard = Yard::new(|_| {}).await;
    let served =
        [model("fine", 900.0, Some(0.95)), model("rough", 5.0, Some(0.6)), model("unrated", 1.0, None)].map(|spec| {
            let handler = Arc::new(Obedient::default());
            (spec, handler)
        });
    let specs: Vec<ModelSpec> = served.iter().map(|(spec, _)| spec.clone()).collect();
    yard.worker("w", served.to_vec());
    yard.scheduler(&specs);
    seen(&yard, &specs).await;
    let ids = yard
        .publish(vec![
            json!({"capability": "obeying", "input": 1}),
            json!({"capability": "obeying", "input": 2, "min_quality": 0.5}),
            json!({"capability": "obeying", "input": 3, "min_quality": 0.9}),
            json!({"capability": "obeying", "input": 4, "min_quality": 0.99}),
            json!({"model": "rough", "input": 5, "min_quality": 0.9}),
            json!({"model": "rough", "input": 6}),
        ])
        .await;
    yard.collect(&ids).await;
    assert_eq!((ran_by(&yard, &ids[0]), reason(&yard, &ids[0])), ("unrated@1", Some(ChoiceReason::LeastCost)));
    assert_eq!((ran_by(&yard, &ids[1]), reason(&yard, &ids[1])), ("rough@1", Some(ChoiceReason::Quality)));
    assert_eq!((ran_by(&yard, &ids[2]), reason(&yard, &ids[2])), ("fine@1", Some(ChoiceReason::Quality)));
    assert_eq!(yard.result(&ids[2]).choice.as_ref().map(|choice| choice.candidates), Some(3));
    assert_eq!(yard.code(&ids[3]), "quality_unmet");
    assert_eq!(yard.code(&ids[4]), "quality_unmet");
    assert_eq!((ran_by(&yard, &ids[5]), reason(&yard, &ids[5])), ("rough@1", None), "it left no choice");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_alternative_has_a_task_that_would_wait_or_has_waited_too_long() {
    let mut yard = Yard::new(|_| {}).await;
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    let other = Arc::new(Obedient::default());
    let specs = [model("a", 400.0, None), model("b", 500.0, None)];
    yard.worker("w", vec![(specs[0].clone(), held.clone()), (specs[1].clone(), other)]);
    yard.scheduler(&specs);
    seen(&yard, &specs).await;
    let alternative = |wait_ms: u64| json!([{"model": "b", "wait_ms": wait_ms}, {"model": "unheard-of", "wait_ms": 0}]);
    let first = yard.publish(vec![json!({"model": "a", "input": 1, "alternatives": alternative(0)})]).await;
    yard.collect(&first).await;
    assert_eq!((ran_by(&yard, &first[0]), reason(&yard, &first[0])), ("a@1", Some(ChoiceReason::Named)));
    // They hold the one slot and what is sent ahead of it, and never end by themselves.
    let hold = || json!({"model": "a", "input": {"do": "wait"}});
    let mut holding = yard.publish(vec![hold()]).await;
    eventually("the slot is taken", || held.runs.load(Ordering::SeqCst) == 2).await;
    // All of one priority: the scheduler may read them at once, and one of a higher priority would go ahead of what holds.
    let ids = yard
        .publish(vec![
            hold(),
            hold(),
            json!({"model": "a", "input": 2, "alternatives": alternative(1)}),
            json!({"model": "a", "input": 3, "priority": 0, "alternatives": alternative(60_000)}),
            json!({"model": "unheard-of", "input": 4, "alternatives": [{"model": "b@1", "wait_ms": 60_000}]}),
        ])
        .await;
    holding.extend(&ids[..2]);
    let ids = &ids[2..];
    let waited = yard.publish(vec![json!({"model": "a", "input": 5, "alternatives": alternative(5_000)})]).await;
    yard.collect(&[ids[0], ids[2], waited[0]]).await;
    assert_eq!((ran_by(&yard, &ids[0]), reason(&yard, &ids[0])), ("b@1", Some(ChoiceReason::Alternative)));
    assert_eq!(ran_by(&yard, &ids[2]), "b@1");
    assert_eq!((ran_by(&yard, &waited[0]), reason(&yard, &waited[0])), ("b@1", Some(ChoiceReason::Alternative)));
    let timings = &yard.result(&waited[0]).timings;
    assert!(timings.waited_ms.unwrap() >= 5_000.0, "{timings:?}");
    gate.add_permits(3);
    yard.collect(&[ids[1]]).await;
    assert_eq!((ran_by(&yard, &ids[1]), reason(&yard, &ids[1])), ("a@1", Some(ChoiceReason::Named)));
    yard.collect(&holding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_stayed_because_it_seemed_soon_goes_elsewhere_when_it_is_not() {
    let mut yard = Yard::new(|_| {}).await;
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    // When its patience is over, the first would be done within less than what the second takes, by all that is known.
    let specs = [model("brief", 10.0, None), model("slow", 300.0, None)];
    yard.worker("w", vec![(specs[0].clone(), held.clone()), (specs[1].clone(), Arc::new(Obedient::default()))]);
    yard.scheduler(&specs);
    seen(&yard, &specs).await;
    let hold = || json!({"model": "brief", "input": {"do": "wait"}});
    let mut holding = yard.publish(vec![hold()]).await;
    eventually("the slot is taken", || held.runs.load(Ordering::SeqCst) == 1).await;
    let alternatives = json!([{"model": "slow", "wait_ms": 50}]);
    let ids = yard
        .publish(vec![
            hold(),
            hold(),
            hold(),
            json!({"model": "brief", "input": 1, "priority": 0, "alternatives": alternatives}),
        ])
        .await;
    holding.extend(&ids[..3]);
    yard.collect(&ids[3..]).await;
    assert_eq!((ran_by(&yard, &ids[3]), reason(&yard, &ids[3])), ("slow@1", Some(ChoiceReason::Alternative)));
    gate.add_permits(4);
    yard.collect(&holding).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_that_turns_a_task_away_leaves_it_to_one_that_has_the_time() {
    let mut yard = Yard::new(|_| {}).await;
    let gate = Arc::new(Semaphore::new(0));
    let held = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    // By its own time the first is cheaper, and its queue is too long for the deadline.
    let specs = [model("quick", 1_000.0, None), model("slow", 1_500.0, None)];
    yard.worker("w", vec![(specs[0].clone(), held.clone()), (specs[1].clone(), Arc::new(Obedient::default()))]);
    yard.scheduler(&specs);
    seen(&yard, &specs).await;
    let holding = yard.publish(vec![json!({"model": "quick", "input": {"do": "wait"}})]).await;
    eventually("the slot is taken", || held.runs.load(Ordering::SeqCst) == 1).await;
    let ids =
        yard.publish(vec![json!({"capability": "obeying", "input": 1, "priority": 9, "deadline_ms": 1_800})]).await;
    yard.collect(&ids).await;
    assert_eq!((ran_by(&yard, &ids[0]), reason(&yard, &ids[0])), ("slow@1", Some(ChoiceReason::Deadline)));
    gate.add_permits(1);
    yard.collect(&holding).await;
}
