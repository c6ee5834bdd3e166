//! Dead letters: what comes to lie there, and what becomes of it over HTTP. The queue itself is their home throughout.

use serde_json::value::RawValue;
use serde_json::{Value, json};
use taskyard_shared::dead::{Letter, ORIGIN_HEADER};
use taskyard_shared::schedule::ScheduleOrder;
use taskyard_shared::workflow::WorkflowOrder;
use taskyard_shared::{Carried, Reply, Timestamp};

use super::control::Api;
use super::schedule::EVERY_SECOND;
use super::*;

impl Api {
    async fn letters(&self, query: &str) -> Vec<Value> {
        let (status, page) = self.get(&format!("/v1/dead{query}")).await;
        assert_eq!(status, 200, "{page}");
        assert_eq!(page["complete"], true);
        page["dead"].as_array().unwrap().clone()
    }

    async fn reasons(&self, query: &str) -> Vec<String> {
        let letters = self.letters(query).await;
        let mut reasons: Vec<String> =
            letters.iter().map(|letter| letter["reason"].as_str().unwrap().to_owned()).collect();
        reasons.sort_unstable();
        reasons
    }
}

impl Yard {
    async fn lie_dead(&self) -> u64 {
        self.broker.queue_state(&self.topology.dead()).await.unwrap().unwrap().ready
    }

    /// Waits until so many dead letters lie there: a result may be told before.
    async fn bury(&self, count: u64) {
        let waiting = async {
            while self.lie_dead().await < count {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, waiting).await.expect("dead letters");
        assert_eq!(self.lie_dead().await, count);
    }

    async fn send(&self, message: Message) {
        self.broker.publish(vec![message]).await.remove(0).unwrap();
    }

    /// Takes the only letter out, and puts it back changed.
    async fn rewrite_letter(&self, change: impl FnOnce(&mut Message)) {
        let mut consumer = self.broker.consume(&self.topology.dead(), 1).await.unwrap();
        let delivery = consumer.next_batch(1).await.unwrap().remove(0);
        consumer.acker().settle(vec![delivery.tag], Verdict::Ack).await;
        let mut message = Message::to_queue(self.topology.dead(), delivery.body);
        message.properties = delivery.properties;
        change(&mut message);
        drop(consumer);
        self.send(message).await;
    }
}

fn failing(n: usize) -> Value {
    json!({"model": "m", "input": {"do": "fail until mended", "n": n}})
}

#[tokio::test(flavor = "multi_thread")]
async fn dead_letters_are_listed_and_shown_and_stay_where_they_are() {
    let mut yard = Yard::new(|_| {}).await;
    yard.worker("w", vec![(spec("m"), Arc::default())]);
    yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    assert_eq!(api.letters("").await, [] as [Value; 0]);
    let ids = yard
        .publish(vec![
            json!({"model": "m", "input": {"do": "fail"}, "tenant": "acme", "priority": 8}),
            json!({"model": "m", "input": {"do": "panic"}}),
            json!({"model": "nowhere", "input": 1}),
            json!({"model": "m"}),
            json!({"model": "m", "input": {}}),
        ])
        .await;
    yard.collect(&ids).await;
    yard.bury(4).await;

    assert_eq!(api.reasons("").await, ["handler_failed", "invalid_field", "own_code", "unknown_model"]);
    assert_eq!(api.reasons("?reason=own_code").await, ["own_code"]);
    assert_eq!(api.reasons("?model=m").await, ["handler_failed", "own_code"]);
    assert_eq!(api.reasons("?model=m@1&tenant=acme").await, ["own_code"]);
    assert_eq!(api.reasons("?reason=none").await, [] as [&str; 0]);

    let (status, letter) = api.get(&format!("/v1/dead/{}", ids[0])).await;
    assert_eq!(status, 200, "{letter}");
    for (field, value) in [
        ("id", json!(ids[0])),
        ("task_id", json!(ids[0])),
        ("reason", json!("own_code")),
        ("message", json!("as told")),
        ("content", json!("task")),
        ("attempts", json!(1)),
        ("model", json!("m@1")),
        ("tenant", json!("acme")),
        ("worker", json!("w")),
        ("reply_to", json!(yard.replies)),
        ("body", Value::Null),
    ] {
        assert_eq!(letter[field], value, "{field} of {letter}");
    }
    assert_eq!(letter["task"]["input"], json!({"do": "fail"}));
    assert_eq!(letter["task"]["priority"], 8);
    assert!(letter["accepted"].as_str() < letter["died"].as_str());
    let (_, panicked) = api.get(&format!("/v1/dead/{}", ids[1])).await;
    assert_eq!((&panicked["attempts"], &panicked["reason"]), (&json!(2), &json!("handler_failed")));
    // What was never accepted is found by the id that it named, too, and has one of its own.
    let (_, refused) = api.get(&format!("/v1/dead/{}", ids[3])).await;
    assert_eq!((&refused["content"], &refused["task_id"]), (&json!("published"), &json!(ids[3])));
    assert_ne!(refused["id"], json!(ids[3]));
    assert_eq!(api.get(&format!("/v1/dead/{}", refused["id"].as_str().unwrap())).await.1, refused);

    let (status, problem) = api.get(&format!("/v1/dead/{}", Uuid::new_v4())).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));
    assert_eq!(yard.lie_dead().await, 4, "looking takes nothing away");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_go_from_the_newest_on_and_none_is_missed_when_others_go_meanwhile() {
    let mut yard = Yard::new(|_| {}).await;
    yard.worker("w", vec![(spec("m"), Arc::default())]);
    yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    let ids = yard.publish((0..45).map(failing).collect()).await;
    yard.collect(&ids).await;
    yard.bury(45).await;
    let mut seen = Vec::new();
    let mut query = "?limit=10".to_owned();
    loop {
        let (_, page) = api.get(&format!("/v1/dead{query}")).await;
        let dead = page["dead"].as_array().unwrap();
        assert!(dead.is_sorted_by(|one, next| one["died"].as_str() >= next["died"].as_str()));
        assert!(dead.len() == 10 || page["cursor"].is_null());
        seen.extend(dead.iter().map(|letter| letter["id"].as_str().unwrap().to_owned()));
        // One that was seen goes while the rest is looked at.
        let (status, gone) = api.post(&format!("/v1/dead/{}/discard", seen[seen.len() - 1]), json!({})).await;
        assert_eq!((status, &gone["outcome"]), (200, &json!("discarded")));
        let Some(cursor) = page["cursor"].as_str() else { break };
        query = format!("?limit=10&cursor={cursor}");
    }
    let mut all: Vec<String> = ids.iter().map(Uuid::to_string).collect();
    all.sort_unstable();
    seen.sort_unstable();
    assert_eq!(seen, all);
    assert_eq!(yard.lie_dead().await, 40);
    assert_eq!(api.get("/v1/dead?cursor=7").await.0, 400);
    assert_eq!(api.get("/v1/dead?limit=0").await.0, 400);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_is_a_new_task_that_names_the_old_one_and_answers_whom_that_would_have() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    let task = json!({"model": "m", "input": {"do": "fail until mended", "n": 1.50}, "priority": 9, "tenant": "acme",
        "idempotency_key": "once", "deadline_ms": 60_000, "metadata": {"kept": "yes"}});
    let ids = yard.publish(vec![task]).await;
    yard.collect(&ids).await;
    yard.bury(1).await;
    let before = api.get(&format!("/v1/tasks/{}", ids[0])).await.1;

    // It fails again, and lies there under its new id.
    let (status, again) = api.post(&format!("/v1/dead/{}/replay", ids[0]), json!({})).await;
    assert_eq!((status, &again["outcome"], &again["id"]), (200, &json!("replayed"), &json!(ids[0])));
    let second: Uuid = again["task_id"].as_str().unwrap().parse().unwrap();
    assert_eq!(second, Letter::replayed(ids[0]).0);
    yard.collect(&[second]).await;
    yard.bury(1).await;
    let (status, problem) = api.post(&format!("/v1/dead/{}/replay", ids[0]), json!({})).await;
    assert_eq!((status, &problem["code"]), (404, &json!("not_found")));

    handler.mended.store(true, Ordering::SeqCst);
    let (_, again) = api.post(&format!("/v1/dead/{second}/replay"), json!({})).await;
    let third: Uuid = again["task_id"].as_str().unwrap().parse().unwrap();
    yard.collect(&[third]).await;
    let result = yard.result(&third);
    assert_eq!((result.state, result.attempt), (State::Succeeded, 1), "all attempts are before it");
    assert_eq!(result.output.as_ref().unwrap().get(), r#"{"do":"fail until mended","n":1.5}"#);
    assert_eq!((result.priority.get(), result.tenant.as_str()), (9, "acme"));
    assert_eq!((result.metadata["kept"].as_str(), &result.metadata["replay_of"]), ("yes", &second.to_string()));
    assert_eq!(yard.lie_dead().await, 0);
    assert_eq!(api.get(&format!("/v1/tasks/{}", ids[0])).await.1, before, "a terminal state never changes");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_cut_short_is_repeated_without_harm() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    let ids = yard.publish(vec![failing(0)]).await;
    yard.collect(&ids).await;
    yard.bury(1).await;
    // As after a crash between the publish and the ack, and as a worker leaves it that was not sure of its first: twice.
    let mut consumer = yard.broker.consume(&yard.topology.dead(), 1).await.unwrap();
    let delivery = consumer.next_batch(1).await.unwrap().remove(0);
    let letter = Letter::read(&delivery.properties, delivery.body).message(&yard.topology);
    yard.broker.publish(vec![letter.clone()]).await.remove(0).unwrap();
    drop(consumer);
    assert_eq!(yard.lie_dead().await, 2);
    assert_eq!(api.letters("").await.len(), 1, "one letter, though it is there twice");

    handler.mended.store(true, Ordering::SeqCst);
    let runs = handler.runs.load(Ordering::SeqCst);
    let path = format!("/v1/dead/{}/replay", ids[0]);
    let (_, first) = api.post(&path, json!({})).await;
    let again: Uuid = first["task_id"].as_str().unwrap().parse().unwrap();
    yard.collect(&[again]).await;
    assert_eq!(yard.lie_dead().await, 0, "both are gone");
    yard.broker.publish(vec![letter]).await.remove(0).unwrap();
    let (status, second) = api.post(&path, json!({})).await;
    assert_eq!((status, &second["task_id"]), (200, &first["task_id"]));
    // It is read before what comes after it.
    let after = yard.publish(vec![failing(1)]).await;
    yard.collect(&after).await;
    assert_eq!(handler.runs.load(Ordering::SeqCst), runs + 2, "the replay ran once, and the one after it");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_matches_is_replayed_or_discarded_together() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    let scheduler = yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    let mut bodies: Vec<Value> = (0..30).map(failing).collect();
    bodies.extend((0..20).map(|n| json!({"model": "nowhere", "input": n})));
    let ids = yard.publish(bodies).await;
    yard.collect(&ids).await;
    yard.bury(50).await;
    for bad in [json!({}), json!({"all": true, "reason": "x"}), json!({"resaon": "x"})] {
        assert_eq!(api.post("/v1/dead/discard", bad.clone()).await.0, 422, "{bad}");
    }
    assert_eq!(yard.lie_dead().await, 50);

    let (status, counts) = api.post("/v1/dead/discard", json!({"reason": "unknown_model"})).await;
    assert_eq!((status, &counts["matched"], &counts["outcomes"]), (200, &json!(20), &json!({"discarded": 20})));
    // What dies again of being tried again is left where it is.
    let (_, counts) = api.post("/v1/dead/replay", json!({"model": "m"})).await;
    assert_eq!((&counts["matched"], &counts["outcomes"]), (&json!(30), &json!({"replayed": 30})));
    let second: Vec<Uuid> = ids[..30].iter().map(|id| Letter::replayed(*id).0).collect();
    yard.collect(&second).await;
    yard.bury(30).await;

    handler.mended.store(true, Ordering::SeqCst);
    let (_, counts) = api.post("/v1/dead/replay", json!({"all": true})).await;
    assert_eq!(counts["outcomes"], json!({"replayed": 30}));
    let third: Vec<Uuid> = second.iter().map(|id| Letter::replayed(*id).0).collect();
    yard.collect(&third).await;
    assert!(third.iter().all(|id| yard.result(id).state == State::Succeeded));
    assert_eq!(yard.lie_dead().await, 0);
    scheduler.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_member_of_a_batch_is_a_letter_by_itself_and_is_tried_again_by_itself() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    let (good, bad) = (Uuid::new_v4(), Uuid::new_v4());
    let body = json!([{"id": good, "model": "m", "input": 1}, {"id": bad, "model": "m", "inptu": 2}, {"model": 7}]);
    yard.publish_with(vec![body], |properties| properties.message_id = None).await;
    yard.collect(&[good, bad]).await;
    yard.bury(2).await;
    let (_, letter) = api.get(&format!("/v1/dead/{bad}")).await;
    assert_eq!(letter["task"], json!({"id": bad, "model": "m", "inptu": 2}), "its own bytes alone");
    assert_eq!((&letter["reason"], &letter["task_id"]), (&json!("invalid_field"), &json!(bad)));
    // Sending it again comes to the same, as nothing of it has changed; its neighbours are left alone.
    let (status, _) = api.post(&format!("/v1/dead/{bad}/replay"), json!({})).await;
    assert_eq!(status, 200);
    yard.bury(2).await;
    assert_eq!(handler.runs.load(Ordering::SeqCst), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn messages_between_roles_that_nobody_could_read_go_back_to_the_schedulers() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    let ids = yard.publish(vec![failing(0)]).await;
    yard.collect(&ids).await;
    yard.bury(1).await;
    // An envelope of another version, in a parcel: as after a rolling upgrade.
    let newer = json!([{"v": 99, "id": Uuid::new_v4(), "model": "m"}]).to_string();
    let message = Message::to_queue(yard.topology.ready("m"), newer);
    yard.broker.publish(vec![message]).await.remove(0).unwrap();
    yard.bury(2).await;
    assert_eq!(api.reasons("?reason=unsupported_version").await, ["unsupported_version"]);
    let (status, counts) = api.post("/v1/dead/replay", json!({"reason": "unsupported_version"})).await;
    assert_eq!((status, &counts["outcomes"]), (200, &json!({"replayed": 1})));
    // The scheduler cannot read it either.
    yard.bury(2).await;
}

/// An order as a scheduler of a later version might have left it, and as this one reads it.
fn later_and_now(order: &impl serde::Serialize) -> (String, String) {
    let now = serde_json::to_string(order).unwrap();
    let later = now.replacen("\"v\":1", "\"v\":2", 1);
    assert_ne!(later, now);
    (later, now)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_workflow_of_another_version_is_kept_and_goes_on_when_it_is_replayed_to_who_can_read_it() {
    let yard = Yard::new(|settings| settings.scheduler.shards = 2).await;
    yard.worker("w", vec![(spec("m"), Arc::default())]);
    let _schedulers = [yard.scheduler(&[spec("m")]), yard.scheduler(&[spec("m")])];
    let api = Api::new(&yard).await;
    let replay = json!({"reason": "unsupported_version"});
    let replayed = async || {
        let (status, counts) = api.post("/v1/dead/replay", replay.clone()).await;
        assert_eq!((status, &counts["outcomes"]), (200, &json!({"replayed": 1})));
    };
    for shard in [0, 1] {
        let id = Uuid::new_v4();
        let body = json!({"id": id, "tasks": [{"name": "a", "model": "m", "input": {"n": shard}}]}).to_string();
        let reply = Reply { to: yard.replies.as_str().into(), correlation_id: Some("7".into()), array: false };
        let carried = Carried { reply: Some(reply), ..Carried::default() };
        let (order, _) = WorkflowOrder::read(body.as_bytes(), &carried, Timestamp::now()).unwrap();
        let (later, now) = later_and_now(&order);
        let queue = yard.topology.workflows(shard);
        let read = async {
            while yard.broker.queue_state(&queue).await.unwrap().is_none_or(|state| state.consumers == 0) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, read).await.expect("a scheduler for each shard");
        let mut message = Message::to_queue(queue, later.clone());
        message.properties.message_id = Some(id.to_string());
        yard.send(message).await;
        yard.bury(1).await;
        let (_, letter) = api.get(&format!("/v1/dead/{id}")).await;
        assert_eq!(
            (&letter["reason"], &letter["content"]),
            (&json!("unsupported_version"), &json!("internal")),
            "{letter}"
        );
        assert_eq!(letter["task"], serde_json::from_str::<Value>(&later).unwrap(), "all of it is kept");
        // To who cannot read it either: it lies there again.
        replayed().await;
        yard.bury(1).await;
        // A scheduler that can read it.
        yard.rewrite_letter(|message| message.body = now.into()).await;
        replayed().await;
        let end = yard.told_end().await;
        assert_eq!((&end["id"], &end["state"]), (&json!(id), &json!("succeeded")), "{end}");
        assert_eq!(end["outputs"], json!({"a": {"n": shard}}));
        assert_eq!(yard.lie_dead().await, 0);
        assert_eq!(api.get(&format!("/v1/workflows/{id}")).await.1["state"], "succeeded");
    }
    let metrics = yard.registry.render().unwrap();
    assert!(metrics.contains("taskyard_tasks_dead_lettered_total{reason=\"unsupported_version\"} 4\n"), "{metrics}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_schedule_of_another_version_is_kept_and_goes_on_when_it_is_replayed_to_who_can_read_it() {
    let yard = Yard::new(|_| {}).await;
    yard.worker("w", vec![(spec("m"), Arc::default())]);
    yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    let raw = json!({"cron": EVERY_SECOND, "task": {"model": "m", "input": 1}}).to_string();
    let raw = RawValue::from_string(raw).unwrap();
    let order = ScheduleOrder::new("default".into(), "nightly".into(), false, raw, Timestamp::now());
    let (later, now) = later_and_now(&order);
    yard.broker.declare(&messages::shard_queues(&yard.topology, 1)).await.unwrap();
    yard.send(Message::to_queue(yard.topology.schedules(), later)).await;
    yard.bury(1).await;
    assert_eq!(api.reasons("").await, ["unsupported_version"]);
    yard.rewrite_letter(|message| message.body = now.into()).await;
    let (status, counts) = api.post("/v1/dead/replay", json!({"all": true})).await;
    assert_eq!((status, &counts["outcomes"]), (200, &json!({"replayed": 1})));
    yard.ticks("nightly", 1).await;
    assert_eq!(api.get("/v1/schedules/nightly").await.0, 200);
    assert_eq!(yard.lie_dead().await, 0);
}

/// Letters of before, which do not say where they came from.
#[tokio::test(flavor = "multi_thread")]
async fn an_order_whose_letter_does_not_name_its_queue_goes_to_the_schedulers_like_any_message() {
    let yard = Yard::new(|_| {}).await;
    yard.scheduler(&[spec("m")]);
    let api = Api::new(&yard).await;
    yard.broker.declare(&messages::shard_queues(&yard.topology, 1)).await.unwrap();
    yard.send(Message::to_queue(yard.topology.workflows(0), r#"{"v":2}"#)).await;
    yard.bury(1).await;
    yard.rewrite_letter(|message| {
        assert_eq!(message.properties.headers.remove(ORIGIN_HEADER).as_deref(), Some("workflows.0"));
    })
    .await;
    assert_eq!(api.post("/v1/dead/replay", json!({"all": true})).await.1["outcomes"], json!({"replayed": 1}));
    yard.bury(1).await;
    yard.rewrite_letter(|message| {
        assert_eq!(message.properties.headers[messages::REASON_HEADER], "unsupported_version");
        assert!(message.properties.headers[messages::DETAIL_HEADER].contains("an envelope"), "read from retries");
        assert_eq!(message.properties.headers.get(ORIGIN_HEADER), None);
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_retry_says_what_really_happened() {
    let mut yard = Yard::new(|_| {}).await;
    let handler = Arc::new(Obedient::default());
    yard.worker("w", vec![(spec("m"), handler.clone())]);
    yard.scheduler(&[spec("m"), spec("absent")]);
    let api = Api::new(&yard).await;
    let ids = yard
        .publish(vec![
            failing(0),
            json!({"model": "m", "input": 1}),
            json!({"model": "m", "input": 1, "deadline": "2001-01-01T00:00:00Z"}),
        ])
        .await;
    yard.collect(&ids).await;
    yard.bury(1).await;
    let waiting = yard.publish(vec![json!({"model": "absent", "input": 1})]).await;
    api.explained(&waiting[0], "no_worker").await;
    let retry = async |id: &Uuid| {
        let (status, answer) = api.post(&format!("/v1/tasks/{id}/retry"), json!({})).await;
        let code = answer["code"].as_str().unwrap_or_default().to_owned();
        (status, answer["outcome"].as_str().unwrap_or_default().to_owned(), code, answer)
    };
    let is = |(status, outcome, code, _): &(u16, String, String, Value)| (*status, outcome.clone(), code.clone());
    let said = |status: u16, outcome: &str, code: &str| (status, outcome.to_owned(), code.to_owned());
    assert_eq!(is(&retry(&ids[1]).await), said(409, "already_finished", "already_finished"));
    assert_eq!(is(&retry(&ids[2]).await), said(409, "input_not_kept", "input_not_kept"));
    assert_eq!(is(&retry(&waiting[0]).await), said(409, "not_finished", "not_finished"));
    assert_eq!(is(&retry(&Uuid::new_v4()).await), said(404, "not_found", "not_found"));

    handler.mended.store(true, Ordering::SeqCst);
    let first = retry(&ids[0]).await;
    assert_eq!(is(&first), said(200, "retried", ""));
    assert_eq!(first.3["state"], "failed");
    let again: Uuid = first.3["task_id"].as_str().unwrap().parse().unwrap();
    yard.collect(&[again]).await;
    assert_eq!(yard.result(&again).state, State::Succeeded);
    // Asking again changes nothing, and says the same.
    assert_eq!(retry(&ids[0]).await, first);
    assert_eq!(yard.lie_dead().await, 0);
}
