//! What the scheduler says of other orders for the tasks that it had served.

use super::*;

/// What the metrics of this name say, from their labels on.
fn shown(yard: &Yard, name: &str) -> Vec<String> {
    let text = yard.registry.render().unwrap();
    text.lines().filter_map(|line| line.strip_prefix(name)).map(str::to_owned).collect()
}

/// A yard that has served so many tasks which all waited for each other.
async fn served(shadow_every_s: u64, count: usize) -> Yard {
    let mut yard = Yard::new(|settings| settings.scheduler.shadow_every_s = shadow_every_s).await;
    let gate = Arc::new(Semaphore::new(0));
    let handler = Arc::new(Obedient { gate: Some(gate.clone()), ..Obedient::default() });
    yard.worker("w", vec![(spec("m"), handler)]);
    yard.scheduler(&[spec("m")]);
    let task = |n| json!({"model": "m", "input": {"do": "wait"}, "priority": n % 10});
    let ids = yard.publish((0..count).map(task).collect()).await;
    gate.add_permits(count);
    yard.collect(&ids).await;
    yard
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_served_is_compared_with_other_orders_when_somebody_wants_to_know() {
    let silent = served(0, 40).await;
    let yard = served(1, 40).await;
    let ratio = |policy: &str| -> Option<f64> {
        let name = format!("taskyard_shadow_weighted_delay_ratio{{model=\"m\",policy=\"{policy}\"}} ");
        shown(&yard, &name).first()?.parse().ok()
    };
    let mut ratios = (0.0, 0.0);
    eventually("both ratios", || match (ratio("fifo"), ratio("oracle")) {
        (Some(fifo), Some(oracle)) => {
            ratios = (fifo, oracle);
            true
        }
        _ => false,
    })
    .await;
    assert!(ratios.0 > 0.0 && ratios.1 > 0.0 && ratios.0.is_finite() && ratios.1.is_finite(), "{ratios:?}");
    let tasks = shown(&yard, "taskyard_shadow_tasks_total{model=\"m\"} ");
    assert!((1..=40).contains(&tasks.first().unwrap().parse::<usize>().unwrap()), "{tasks:?}");
    // It began earlier, so its windows would have ended earlier, too.
    assert_eq!(shown(&silent, "taskyard_shadow_"), [""; 0]);
}
