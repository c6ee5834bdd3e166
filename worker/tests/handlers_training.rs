//! The handler `training` with the real encoder: it learns, goes on where another attempt ended, and what it makes can be served.

mod handlers_kit;

use std::sync::Arc;

use handlers_kit::{failure, in_time, job, message, models, output, root};
use serde_json::{Value, json};
use taskyard_shared::artifacts::{ArtifactId, Artifacts};
use taskyard_worker::handlers::{ModelCache, build};
use taskyard_worker::{Handler, Job};

const TRAINING: &str = r#"
[models.learn]
handler = "training"
[models.learn.training]
file = "models/minilm/model.onnx"
tokenizer = "models/minilm/tokenizer.json"
max_rows = 400
"#;

async fn training(artifacts: Option<&Artifacts>) -> Arc<dyn Handler> {
    let cache = ModelCache::with_artifacts(artifacts.cloned());
    build("learn", &models(TRAINING)["learn"], &root(), &cache).await.unwrap()
}

/// Questions of three intents: so many of each to learn from, or all those to test on.
fn questions(split: &str, most: usize) -> Value {
    let intents = ["card_swallowed", "change_pin", "card_about_to_expire"];
    let mut left = [most; 3];
    let mut table = csv::Reader::from_path(root().join("demo/card-questions.csv")).unwrap();
    let rows = table.deserialize::<(String, String, String)>().filter_map(|row| {
        let (of, text, intent) = row.unwrap();
        let at = intents.iter().position(|known| *known == intent)?;
        (of == split && !text.trim().is_empty() && left[at] > 0).then(|| {
            left[at] -= 1;
            json!({"text": text, "label": intent})
        })
    });
    rows.collect()
}

async fn ask(handler: &Arc<dyn Handler>, job: Job) -> Value {
    output(&in_time("the training", handler.execute(vec![job])).await[0])
}

#[tokio::test]
async fn what_it_makes_is_served_and_answers_as_well_as_it_says() {
    let artifacts = Artifacts::in_memory();
    let handler = training(Some(&artifacts)).await;
    let order =
        json!({"name": "cards", "rows": questions("train", 30), "test_rows": questions("test", 15), "note": [1]});
    let made = ask(&handler, job(&order)).await;
    assert!(made["metrics"]["accuracy"].as_f64().unwrap() > 0.85, "{made}");
    assert_eq!((&made["labels"], &made["rows"]["train"], &made["note"]), (&json!(3), &json!(90), &json!([1])));
    assert!(made.get("resumed_from").is_none());

    let folder = tempfile::tempdir().unwrap();
    for (file, reference) in made["files"].as_object().unwrap() {
        let id: ArtifactId = reference["$ref"].as_str().unwrap().parse().unwrap();
        std::fs::write(folder.path().join(file), artifacts.get(id, 1 << 20).await.unwrap()).unwrap();
    }
    let toml = format!(
        "[models.cards]\nhandler = 'onnx'\n[models.cards.onnx]\ntask = 'text-classification'\nfile = {:?}\ntokenizer = {:?}\n\
         head = 'cards.head.json'\n",
        root().join("models/minilm/model.onnx"),
        root().join("models/minilm/tokenizer.json"),
    );
    let served = handlers_kit::load(&toml, folder.path()).await.unwrap();
    let tested = questions("test", 15);
    let (mut right, mut all) = (0.0, 0.0);
    for row in tested.as_array().unwrap() {
        let said = ask(&served, job(json!({"text": row["text"]}))).await;
        right += f64::from(u8::from(said["label"] == row["label"]));
        all += 1.0;
    }
    assert!((right / all - made["metrics"]["accuracy"].as_f64().unwrap()).abs() < 1e-9);
}

#[tokio::test]
async fn another_attempt_goes_on_from_the_checkpoint_and_comes_to_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let artifacts = Artifacts::in_folder(folder.path()).unwrap();
    let handler = training(Some(&artifacts)).await;
    let order = |iterations: u64| json!({"name": "cards", "rows": questions("train", 12), "l2": 0.001, "max_iterations": iterations});
    let whole = ask(&handler, job(order(30))).await;
    assert_eq!(whole["iterations"], 30, "{whole}");

    // An attempt that ends before it is through: what it has learnt cannot be kept where a file stands for the folder.
    let cut = job(order(10));
    let place = format!("checkpoints/{}", cut.id.0);
    let (contents, aside) = (folder.path().join("sha256"), folder.path().join("aside"));
    std::fs::rename(&contents, &aside).unwrap();
    std::fs::write(&contents, "").unwrap();
    let answers = in_time("the attempt", handler.execute(vec![cut.clone()])).await;
    assert!(failure(&answers[0]).1, "not to be tried again: {answers:?}");
    std::fs::remove_file(&contents).unwrap();
    std::fs::rename(&aside, &contents).unwrap();
    let left = artifacts.note(&place, 1 << 20).await.unwrap().expect("a checkpoint");

    let resumed = ask(&handler, Job { id: cut.id, attempt: 2, ..job(order(30)) }).await;
    assert_eq!(resumed["resumed_from"], 10, "{resumed}");
    assert_eq!((&resumed["iterations"], &resumed["weights"]), (&whole["iterations"], &whole["weights"]));
    assert_eq!(artifacts.note(&place, 1 << 20).await, Ok(None), "nothing is left of what is through");

    // One of other rows, or that cannot be read, is passed over.
    for kept in [left, "nonsense".into()] {
        let other = job(json!({"name": "cards", "rows": questions("train", 11), "max_iterations": 10}));
        artifacts.put_note(&format!("checkpoints/{}", other.id.0), kept).await.unwrap();
        assert!(ask(&handler, other).await.get("resumed_from").is_none());
    }
}

#[tokio::test]
async fn rows_are_taken_from_artifacts_and_weights_are_gone_on_from() {
    let artifacts = Artifacts::in_memory();
    let handler = training(Some(&artifacts)).await;
    let rows = questions("train", 8);
    let (first, second) = rows.as_array().unwrap().split_at(10);
    let first = artifacts.put(serde_json::to_vec(first).unwrap().into()).await.unwrap();
    let lines: String = second.iter().map(|row| format!("{row}\n")).collect();
    let second = artifacts.put(lines.into()).await.unwrap();
    let order = json!({"name": "cards", "rows": [{"$ref": first}, {"$ref": second}], "max_iterations": 10});
    let parts = ask(&handler, job(&order)).await;
    let here = ask(&handler, job(json!({"name": "cards", "rows": rows, "max_iterations": 10}))).await;
    assert_eq!(parts["weights"], here["weights"]);

    let mut warm = order.clone();
    warm["warm_start"] = parts["weights"].clone();
    let warm = ask(&handler, job(&warm)).await;
    let losses = [&parts, &warm].map(|made| made["metrics"]["train_loss"].as_f64().unwrap());
    assert!(losses[1] < losses[0], "{losses:?}");
}

#[tokio::test]
async fn orders_that_cannot_be_carried_out_say_why() {
    let artifacts = Artifacts::in_memory();
    let handler = training(Some(&artifacts)).await;
    let rows = questions("train", 2);
    let spoilt = artifacts.put("nonsense".into()).await.unwrap();
    let absent = ArtifactId::of(b"absent");
    let many: Value = (0..401).map(|at| json!({"text": at.to_string(), "label": (at % 2).to_string()})).collect();
    for (order, said) in [
        (json!({"name": "a"}), "rows"),
        (json!({"name": "a", "rows": [{"text": "a", "label": "b"}]}), "label"),
        (json!({"name": "a", "rows": many}), "400 rows"),
        (json!({"name": "a", "rows": {"$ref": spoilt}}), "line 1"),
        (json!({"name": "a", "rows": {"$ref": absent}}), "there is no artifact:"),
        (json!({"name": "a", "rows": rows, "warm_start": {"$ref": spoilt}}), "warm_start"),
        (
            json!({"name": "a", "rows": [{"text": "a", "label": "b"}, {"text": "x".repeat(300_000), "label": "c"}], "held_out": 1e-9}),
            "bytes",
        ),
    ] {
        let answers = in_time("the refusal", handler.execute(vec![job(&order)])).await;
        assert_eq!(failure(&answers[0]), ("bad_input", false));
        assert!(message(&answers[0]).contains(said), "{said}: {}", message(&answers[0]));
    }
    let nowhere = training(None).await;
    let answers = nowhere.execute(vec![job(json!({"name": "a", "rows": rows}))]).await;
    assert_eq!(failure(&answers[0]), ("no_artifacts", false));
}
