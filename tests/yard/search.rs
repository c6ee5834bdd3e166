//! A hyper-parameter search by successive halving: the workflow of the examples, with the shipped models, on real questions.

use std::collections::BTreeMap;

use serde_json::{Value, json};
use taskyard_shared::artifacts::Artifacts;
use taskyard_shared::process::settings::{ModelSettings, WorkerSettings};
use taskyard_worker::Foundry;
use taskyard_worker::handlers::{ModelCache, Recipe, RecipeBook};

use super::deployment::output;
use super::holding::root;
use super::*;

const MODELS: [&str; 4] = ["intents", "learn-text", "search", "tables"];

/// A worker of the shipped models that a search needs, as the binary starts it. Answers what they are.
fn trainer(yard: &Yard) -> Vec<ModelSpec> {
    let loaded = taskyard_shared::process::config::load(Some(&root().join("models/models.toml"))).unwrap();
    let (folder, cache) = (root().join("models"), ModelCache::with_artifacts(Some(Artifacts::in_memory())));
    let settings: BTreeMap<String, ModelSettings> =
        MODELS.iter().map(|name| ((*name).to_owned(), loaded.settings.models[*name].clone())).collect();
    let book: Arc<dyn Foundry> = Arc::new(RecipeBook::new(settings.clone(), &folder, &cache));
    let of_worker = WorkerSettings { id: "trainer".into(), ..yard.settings.worker.clone() };
    let registry = Registry::new().unwrap();
    let worker = Worker::new(yard.broker.clone(), yard.store.clone(), yard.topology.clone(), of_worker, &registry);
    let mut worker = worker.unwrap().foundry(book);
    let specs: Vec<ModelSpec> = settings.iter().map(|(name, settings)| settings.spec(name)).collect();
    for (spec, (name, settings)) in specs.iter().zip(&settings) {
        let recipe = Recipe::new(name, settings, &folder, &cache).unwrap();
        worker = worker.candidate(spec.clone(), Arc::new(recipe));
    }
    tokio::spawn(worker.run(CancellationToken::new(), CancellationToken::new()));
    specs
}

/// The example, as a user submits it.
fn example() -> Value {
    let text = std::fs::read_to_string(root().join("examples/search/search.json")).unwrap();
    serde_json::from_str(&text).unwrap()
}

fn step<'a>(workflow: &'a mut Value, name: &str) -> &'a mut Value {
    workflow["tasks"].as_array_mut().unwrap().iter_mut().find(|step| step["name"] == name).unwrap()
}

/// The steps that lead to a trained model: without those that serve it.
fn without_deployment(workflow: &mut Value) {
    workflow["tasks"].as_array_mut().unwrap().retain(|step| step["kind"] != "deployment" && step["name"] != "final");
}

async fn succeeded(yard: &Yard, workflow: Value) -> Value {
    let end = yard.run_workflow(workflow).await;
    assert_eq!(end["state"], "succeeded", "{end:#}");
    end
}

/// The results of a step's tasks.
async fn trained(yard: &Yard, end: &Value, step: &str, tasks: u32) -> Vec<Value> {
    let id = taskyard_shared::workflow::WorkflowId(end["id"].as_str().unwrap().parse().unwrap());
    let ids = (0..tasks).map(|item| id.task(step, Some(item))).collect();
    yard.store.get(ids).await.unwrap().into_iter().map(|task| output(&task.unwrap())).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_search_finds_what_the_full_grid_finds_with_a_part_of_its_work() {
    let mut yard = Yard::new(|settings| settings.worker.lease_ms = 30_000).await;
    let specs = trainer(&yard);
    yard.scheduler(&specs);

    let example = example();
    let csv = std::fs::read_to_string(root().join("demo/card-questions.csv")).unwrap();
    assert_eq!(
        step(&mut example.clone(), "questions")["input"]["from"]["csv"],
        json!(csv),
        "make_search.py is to be run again"
    );
    let end = succeeded(&yard, example.clone()).await;
    let report = &end["outputs"]["report"];

    // It stops early, and says so.
    let candidates = report["candidates"].as_array().unwrap();
    let rungs: Vec<usize> = candidates.iter().map(|one| one["scores"].as_array().unwrap().len()).collect();
    assert_eq!(rungs, [3, 2, 2, 1, 1, 1, 1, 1, 1], "{report:#}");
    let work = &report["work"];
    assert!(work["part"].as_f64().unwrap() < 0.6, "{work}");

    // What it says was done is what was done.
    let mut done = 0;
    for (step, tasks) in [("rung-1", 9), ("rung-2", 3), ("rung-3", 1)] {
        let iterations = trained(&yard, &end, step, tasks).await;
        done += iterations.iter().map(|one| one["iterations"].as_u64().unwrap()).sum::<u64>();
    }
    assert_eq!(work["done"], done);

    // The same candidates, each to the end: what the search saved, and what it missed.
    let mut grid = example.clone();
    without_deployment(&mut grid);
    let whole = step(&mut grid, "rung-1");
    whole["input"]["max_iterations"] = json!(90);
    grid["tasks"].as_array_mut().unwrap().retain(|step| {
        let name = step["name"].as_str().unwrap();
        ["plan", "questions", "tables", "rung-1"].contains(&name)
    });
    let end_of_grid = succeeded(&yard, grid).await;
    let grid = trained(&yard, &end_of_grid, "rung-1", 9).await;
    let iterations: u64 = grid.iter().map(|one| one["iterations"].as_u64().unwrap()).sum();
    assert!(done * 5 < iterations * 4, "{done} of {iterations} iterations");
    assert!(work["full_grid_at_most"].as_u64().unwrap() >= iterations, "{work}, and {iterations}");
    let loss = |one: &Value| one["metrics"]["loss"].as_f64().unwrap();
    let best = &report["best"];
    let found = best["scores"].as_array().unwrap().last().unwrap().as_f64().unwrap();
    let least = grid.iter().map(loss).fold(f64::INFINITY, f64::min);
    let mean = grid.iter().map(loss).sum::<f64>() / 9.0;
    assert!(found < least + 0.1 * (mean - least), "{found}, and the grid's least is {least}, its mean {mean}");
    // Training goes on where it stopped: in pieces it comes to what it comes to at once.
    let same = &grid[best["number"].as_u64().unwrap() as usize];
    let last = &trained(&yard, &end, "rung-3", 1).await[0];
    assert_eq!((&last["weights"], &last["l2"]), (&same["weights"], &same["l2"]));

    // The best is served.
    let question = json!({"model": "card-search", "input": {"text": "The machine has eaten my card"}});
    let answer = yard.one(question).await;
    assert_eq!((answer.state, answer.model.as_deref()), (State::Succeeded, Some("card-search@1")));
    assert_eq!(output(&answer)["label"], "card_swallowed");

    // Again it comes to the same, all of it, and the version that is there already is that one.
    let again = succeeded(&yard, example).await;
    assert_eq!(&again["outputs"]["report"], report);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_candidate_that_cannot_be_trained_is_out_and_the_others_go_on() {
    let yard = Yard::new(|settings| settings.worker.lease_ms = 30_000).await;
    let specs = trainer(&yard);
    yard.scheduler(&specs);
    let mut search = example();
    without_deployment(&mut search);
    step(&mut search, "plan")["input"] = json!({
        "do": "sample", "candidates": [{"l2": -1}, {"l2": 1}, {"l2": 100}, {"l2": "much"}], "keep_one_of": 2, "rungs": 3,
    });
    // A hundred rows of three intents will do.
    let csv = step(&mut search, "questions")["input"]["from"]["csv"].take();
    let few = ["card_swallowed", "change_pin", "card_linking", "intent"];
    let rows: Vec<&str> =
        csv.as_str().unwrap().lines().filter(|row| few.iter().any(|intent| row.ends_with(intent))).take(100).collect();
    step(&mut search, "questions")["input"]["from"]["csv"] = json!(rows.join("\n"));
    let end = yard.run_workflow(search).await;
    // A workflow has only succeeded when all of it has; the search has come to its end all the same.
    assert_eq!((&end["state"], &end["error"]["code"]), (&json!("failed"), &json!("items_failed")), "{end:#}");
    let report = &end["outputs"]["report"];
    let numbers: Vec<u64> =
        report["candidates"].as_array().unwrap().iter().map(|one| one["number"].as_u64().unwrap()).collect();
    assert_eq!(&numbers[2..], [0, 3], "{report:#}");
    assert_eq!((&report["rungs"][0]["failed"], &report["rungs"][1]["candidates"]), (&json!(2), &json!(2)));
    assert_eq!(report["best"]["scores"].as_array().unwrap().len(), 3);
}
