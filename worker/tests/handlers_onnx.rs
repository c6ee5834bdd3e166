//! The models of the repository, through the handler: known answers, in batches, and one encoder for two models.

mod handlers_kit;

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::poll;
use handlers_kit::{eventually, failure, job, load_error, message, models, models_in, output, root};
use serde_json::{Value, json};
use taskyard_worker::handlers::{ModelCache, build};
use taskyard_worker::{Answer, Handler, Job};

async fn shipped(name: &str, cache: &ModelCache) -> Arc<dyn Handler> {
    let folder = root().join("models");
    let models = models_in(&folder.join("models.toml"));
    build(name, &models[name], &folder, cache).await.unwrap()
}

fn known(file: &str) -> Vec<Value> {
    let lines = std::fs::read_to_string(root().join("demo").join(file)).unwrap();
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

async fn in_batches(handler: &dyn Handler, jobs: Vec<Job>) -> Vec<Answer> {
    let mut answers = Vec::new();
    for batch in jobs.chunks(8) {
        answers.extend(handler.execute(batch.to_vec()).await);
    }
    assert_eq!(answers.len(), jobs.len());
    answers
}

fn check(known: &[Value], answers: &[Answer]) {
    assert!(known.len() >= 32);
    for (known, answer) in known.iter().zip(answers) {
        let output = output(answer);
        assert_eq!(output["label"], known["expected"], "{known}");
        let difference = output["score"].as_f64().unwrap() - known["score"].as_f64().unwrap();
        assert!(difference.abs() < 1e-3, "{known}: {output}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn intents_and_sentiments_are_as_known_and_stand_on_one_encoder() {
    let cache = ModelCache::default();
    let (intents, sentiment) = (shipped("intents", &cache).await, shipped("sentiment", &cache).await);
    assert_eq!(cache.files_loaded(), 1);
    for (handler, file) in [(&intents, "intents.jsonl"), (&sentiment, "sentiment.jsonl")] {
        let known = known(file);
        let jobs = known.iter().map(|item| job(json!({"text": item["text"]}))).collect();
        check(&known, &in_batches(handler.as_ref(), jobs).await);
    }
    drop((intents, sentiment));
    assert_eq!(cache.files_loaded(), 0, "the cache keeps nothing alive by itself");
}

#[tokio::test]
async fn file_types_are_as_known_from_bytes_and_from_text() {
    let handler = shipped("file-type", &ModelCache::default()).await;
    let known = known("files.jsonl");
    let contents: Vec<Vec<u8>> = known
        .iter()
        .map(|item| std::fs::read(root().join("demo").join(item["file"].as_str().unwrap())).unwrap())
        .collect();
    let jobs = contents.iter().map(|bytes| job(json!({"base64": STANDARD.encode(bytes)}))).collect();
    check(&known, &in_batches(handler.as_ref(), jobs).await);

    let (texts, known_texts): (Vec<_>, Vec<_>) = contents
        .iter()
        .zip(known)
        .filter_map(|(bytes, known)| Some((job(json!({"text": std::str::from_utf8(bytes).ok()?})), known)))
        .unzip();
    assert!(texts.len() > 10);
    for (known, answer) in known_texts.iter().zip(&in_batches(handler.as_ref(), texts).await) {
        assert_eq!(output(answer)["label"], known["expected"]);
    }
}

#[tokio::test]
async fn a_bad_input_fails_its_own_task_only() {
    let handler = shipped("intents", &ModelCache::default()).await;
    let huge = format!("{{\"text\": \"{}\"}}", "a".repeat(300_000));
    let batch = vec![
        job(r#"{"text": "I lost my card", "top": 2}"#),
        job("{}"),
        job(r#"["I lost my card"]"#),
        job(r#"{"text": 7}"#),
        job(r#"{"text": "a", "topp": 2}"#),
        job(r#"{"text": "a", "top": 0}"#),
        job(r#"{"text": "a", "top": -1}"#),
        job(huge),
        job("null"),
        job(r#"{"text": "I lost my card", "top": 1000}"#),
    ];
    let answers = handler.execute(batch).await;
    let (first, last) = (output(&answers[0]), output(&answers[9]));
    assert_eq!(first["label"], "lost_or_stolen_card");
    assert_eq!(first["top"].as_array().unwrap().len(), 2);
    assert_eq!(first["top"][0], json!({"label": first["label"], "score": first["score"]}));
    assert_eq!(last["top"].as_array().unwrap().len(), 77);
    for answer in &answers[1..9] {
        assert_eq!(failure(answer), ("bad_input", false));
        assert!(message(answer).len() < 400);
    }
    assert!(message(&answers[4]).contains("topp"));
    assert_eq!(handler.execute(Vec::new()).await.len(), 0);

    let handler = shipped("file-type", &ModelCache::default()).await;
    let batch = ["{}", r#"{"base64": "%"}"#, r#"{"base64": "", "text": ""}"#, r#"{"text": ""}"#];
    let answers = handler.execute(batch.map(job).to_vec()).await;
    for answer in &answers[..3] {
        assert_eq!(failure(answer), ("bad_input", false));
    }
    assert_eq!(output(&answers[3])["label"], "empty");
}

/// A run cannot be cut short, but those after it need not begin.
#[tokio::test(flavor = "multi_thread")]
async fn a_call_that_is_dropped_ends_after_the_run_it_is_in() {
    let cache = ModelCache::default();
    let handler = shipped("intents", &cache).await;
    // As long as texts may be: these are one run each four.
    let batch = |texts| vec![job(json!({"text": "card ".repeat(200)})); texts];
    let start = Instant::now();
    assert!(handler.execute(batch(4)).await.iter().all(Result::is_ok));
    let one_run = start.elapsed();

    let mut call = handler.execute(batch(1000));
    assert!(poll!(&mut call).is_pending());
    drop(call);
    drop(handler);
    let start = Instant::now();
    eventually("nobody uses the model any more", || cache.files_loaded() == 0).await;
    assert!(start.elapsed() < 100 * one_run, "{:?}, and {one_run:?} for one run of 250", start.elapsed());
}

#[tokio::test]
async fn an_embedding_is_a_vector_of_length_one_and_near_to_its_like() {
    let toml = r#"
        [models.vectors]
        handler = "onnx"
        [models.vectors.onnx]
        task = "text-embedding"
        file = "minilm/model.onnx"
        tokenizer = "minilm/tokenizer.json"
    "#;
    let handler = handlers_kit::load(toml, &root().join("models")).await.unwrap();
    let texts = ["my card was stolen", "somebody took my card", "shares fell in Tokyo"];
    let answers = handler.execute(texts.map(|text| job(json!({"text": text}))).to_vec()).await;
    let vectors: Vec<Vec<f64>> =
        answers.iter().map(|answer| serde_json::from_value(output(answer)["vector"].clone()).unwrap()).collect();
    let likeness = |a: usize, b: usize| vectors[a].iter().zip(&vectors[b]).map(|(x, y)| x * y).sum::<f64>();
    assert!(vectors.iter().all(|vector| vector.len() == 384));
    assert!((likeness(0, 0) - 1.0).abs() < 1e-4);
    assert!(likeness(0, 1) > likeness(0, 2) + 0.3, "{} {}", likeness(0, 1), likeness(0, 2));
}

#[tokio::test]
async fn a_file_that_was_cut_off_is_said_to_be_no_model() {
    let folder = tempfile::tempdir().unwrap();
    let shipped = root().join("models/minilm");
    let whole = std::fs::read(shipped.join("model.onnx")).unwrap();
    std::fs::copy(shipped.join("tokenizer.json"), folder.path().join("tokenizer.json")).unwrap();
    let text = "[models.e]\nhandler = \"onnx\"\n[models.e.onnx]\ntask = \"text-embedding\"\nfile = \"model.onnx\"\n\
                tokenizer = \"tokenizer.json\"";
    for bytes in [0, 1, 1_000, whole.len() / 2, whole.len() - 1] {
        std::fs::write(folder.path().join("model.onnx"), &whole[..bytes]).unwrap();
        let error = load_error(text, folder.path()).await;
        assert!(error.contains("model.onnx: ") && !error.contains('\n'), "{bytes} bytes: {error}");
    }
    std::fs::write(folder.path().join("model.onnx"), &whole).unwrap();
    assert!(build("e", &models(text)["e"], folder.path(), &ModelCache::default()).await.is_ok(), "and whole it loads");
}

/// One model per row: what is changed in its table, and what the error says about it.
#[tokio::test]
async fn what_cannot_be_loaded_is_said_in_one_sentence() {
    let whole = r#"
        [models.mood]
        handler = "onnx"
        [models.mood.onnx]
        task = "text-classification"
        file = "minilm/model.onnx"
        tokenizer = "minilm/tokenizer.json"
        head = "heads/finance-sentiment.head.json"
    "#;
    let sum = "8199be6f699a395f99f89df973f9dc5285fbcfcdb2ae1a4e1201dab014f3d2a6";
    let cases = [
        ("minilm/model.onnx", "gone.onnx", "models/gone.onnx: no such file"),
        ("minilm/tokenizer.json", "gone.json", "models/gone.json: no such file"),
        ("heads/finance-sentiment.head.json", "gone.json", "models/gone.json: no such file"),
        ("minilm/model.onnx", "magika/LICENSE", "LICENSE: not a valid ONNX model"),
        ("head = ", "# ", "onnx.head is missing"),
        ("head = ", "config = \"x\"\nhead = ", "onnx.config is of no use"),
        ("\"text-classification\"", "\"file-type\"", "onnx.tokenizer is of no use"),
        ("head = ", "sha256 = \"abc\"\nhead = ", "sha256 must be 64"),
        ("handler = \"onnx\"", "handler = \"tensor\"", "handler must be one of"),
        ("handler = \"onnx\"", "handler = \"http\"", "there is a table [models.mood.onnx]"),
        ("handler = \"onnx\"", "handler = \"onnx\"\nslots = 0", "slots must be at least 1"),
    ];
    let folder = root().join("models");
    for (found, instead, expected) in cases {
        let error = load_error(&whole.replacen(found, instead, 1), &folder).await;
        assert!(error.starts_with("model mood: ") && error.contains(expected), "{error}");
        assert!(!error.contains('\n'), "{error}");
    }
    let with_sum = |sum: &str| whole.replace("head = ", &format!("sha256 = \"{sum}\"\nhead = "));
    let wrong = load_error(&with_sum(&sum.replace('8', "9")), &folder).await;
    assert!(wrong.contains("model.onnx: its sha256 is ") && wrong.contains(sum), "{wrong}");
    let missing_table = load_error("[models.mood]\nhandler = \"onnx\"", &folder).await;
    assert!(missing_table.contains("the table [models.mood.onnx] is missing"), "{missing_table}");

    // A file that is in memory already is held against the checksum as well.
    let cache = ModelCache::default();
    let loaded = build("mood", &models(whole)["mood"], &folder, &cache).await.unwrap();
    let summed = |sum: &str| models(&with_sum(sum))["mood"].clone();
    assert!(build("mood", &summed(&sum.to_uppercase()), &folder, &cache).await.is_ok());
    assert!(build("mood", &summed(&sum.replace('8', "9")), &folder, &cache).await.is_err());
    drop(loaded);

    let error = match build("mood", &models(whole)["mood"], Path::new("/nowhere"), &cache).await {
        Ok(_) => panic!("it loads"),
        Err(error) => error,
    };
    assert!(error.is_missing_file(), "{error}");
}
