//! What a model server says that a task took: in its result, in its record, and counted.

use std::path::Path;

use taskyard_shared::Usage;
use taskyard_shared::process::settings::ModelSettings;
use taskyard_worker::handlers::{ModelCache, build};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use super::*;

/// Answers chat completions that took 100 and 50 tokens; with a prompt "dear" so long that no worker takes it; with "silent" it says
/// nothing of tokens.
async fn serve() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(answer(stream));
        }
    });
    url
}

async fn answer(mut stream: TcpStream) -> Option<()> {
    let (mut read, mut piece) = (Vec::new(), [0; 4096]);
    loop {
        let text = String::from_utf8_lossy(&read).into_owned();
        let whole = text.split_once("\r\n\r\n").is_some_and(|(head, body)| {
            let length =
                head.lines().find_map(|line| line.to_lowercase().strip_prefix("content-length: ")?.parse().ok());
            length.is_some_and(|length: usize| body.len() >= length)
        });
        if whole {
            let content = if text.contains("dear") { "x".repeat(200_000) } else { "Hi".to_owned() };
            let usage = json!({"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150});
            let mut body = json!({"choices": [{"message": {"content": content}}], "usage": usage});
            if text.contains("silent") {
                body["usage"].take();
            }
            let body = body.to_string();
            let head = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: close\r\n\r\n", body.len());
            stream.write_all((head + &body).as_bytes()).await.ok()?;
            return stream.shutdown().await.ok();
        }
        let bytes = stream.read(&mut piece).await.ok().filter(|bytes| *bytes > 0)?;
        read.extend_from_slice(&piece[..bytes]);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_in_the_result_and_counted_for_each_tenant_with_their_cost() {
    let mut yard = Yard::new(|settings| settings.worker.max_output_bytes = 100_000).await;
    let url = serve().await;
    let settings = |more: &str| -> ModelSettings {
        let text = format!("handler = 'http'\n[http]\nurl = '{url}'\nprotocol = 'openai'\n{more}");
        toml::from_str(&text).unwrap()
    };
    let priced = settings("prompt_price_per_1000 = 0.5\ncompletion_price_per_1000 = 2.0");
    let (worker_settings, registry) = (yard.settings.worker.clone(), Registry::new().unwrap());
    let worker =
        Worker::new(yard.broker.clone(), yard.store.clone(), yard.topology.clone(), worker_settings, &registry);
    let mut worker = worker.unwrap().tenants(["named".to_owned()]);
    let mut specs = Vec::new();
    for (name, settings) in [("llm", &priced), ("free", &settings(""))] {
        let handler = build(name, settings, Path::new("."), &ModelCache::default()).await.unwrap();
        specs.push(settings.spec(name));
        worker = worker.model(settings.spec(name), handler);
    }
    tokio::spawn(worker.run(CancellationToken::new(), CancellationToken::new()));
    yard.scheduler(&specs);

    let ask = |model: &str, tenant: &str, content: &str| json!({"model": model, "tenant": tenant, "input": {"messages": [{"role": "user", "content": content}]}});
    let ids = yard
        .publish(vec![
            ask("llm", "named", "Hello"),
            ask("llm", "one of many", "Hello"),
            ask("llm", "another", "Hello"),
            ask("llm", "named", "dear"),
            ask("llm", "default", "silent"),
            ask("free", "default", "Hello"),
        ])
        .await;
    yard.collect(&ids).await;
    let usage = |at: usize| {
        let result = yard.result(&ids[at]);
        (result.state, result.usage.map(|usage| (usage.prompt_tokens, usage.completion_tokens, usage.cost)))
    };
    assert_eq!(usage(0), (State::Succeeded, Some((100, 50, Some(0.15)))));
    assert_eq!(usage(1), usage(0));
    // It was paid for, whatever became of it.
    assert_eq!(usage(3), (State::Failed, Some((100, 50, Some(0.15)))));
    assert_eq!(usage(4), (State::Succeeded, None));
    assert_eq!(usage(5), (State::Succeeded, Some((100, 50, None))));
    let shown = serde_json::to_value(yard.result(&ids[0])).unwrap();
    assert_eq!(shown["usage"], json!({"prompt_tokens": 100, "completion_tokens": 50, "cost": 0.15}));
    assert!(serde_json::to_value(yard.result(&ids[4])).unwrap().get("usage").is_none(), "additive");
    let kept = yard.store.get(vec![TaskId(ids[0])]).await.unwrap().pop().flatten().unwrap();
    assert_eq!(kept.usage, yard.result(&ids[0]).usage);

    let text = registry.render().unwrap();
    let value = |row: &str| text.lines().find_map(|line| line.strip_prefix(row)?.trim().parse::<f64>().ok());
    let tokens = |model: &str, tenant: &str, kind: &str| {
        value(&format!("taskyard_tokens_total{{kind=\"{kind}\",model=\"{model}\",tenant=\"{tenant}\"}}"))
    };
    assert_eq!((tokens("llm", "named", "prompt"), tokens("llm", "named", "completion")), (Some(200.0), Some(100.0)));
    assert_eq!((tokens("llm", "_other", "prompt"), tokens("free", "default", "completion")), (Some(200.0), Some(50.0)));
    assert_eq!(tokens("llm", "default", "prompt"), None);
    assert!(!text.contains("one of many"), "a tenant that nobody named is no label");
    let cost = value("taskyard_token_cost_total{model=\"llm\",tenant=\"named\"}").unwrap();
    assert!((cost - 0.3).abs() < 1e-9, "{cost}");
    assert!(!text.contains("taskyard_token_cost_total{model=\"free\""));
}

/// Takes 10 and 5 tokens whenever it asks, and asks once in its first attempt, which fails, and twice in the next.
struct Asking;

#[async_trait]
impl Handler for Asking {
    async fn execute(&self, batch: Vec<Job>) -> Vec<Answer> {
        let ask = |job: &Job| {
            job.meanwhile.used(Usage { prompt_tokens: 10, completion_tokens: 5, cost: Some(0.25) });
        };
        let mut answers = Vec::new();
        for job in batch {
            ask(&job);
            answers.push(match job.attempt {
                1 => Err(TaskError { code: "own_code".into(), message: "as told".into(), retryable: true }),
                _ => {
                    ask(&job);
                    Ok(job.input)
                }
            });
        }
        answers
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_result_has_what_its_last_attempt_took_and_the_metrics_what_all_of_them_took() {
    let mut yard = Yard::new(|_| {}).await;
    let registry = Registry::new().unwrap();
    let (broker, store, settings) = (yard.broker.clone(), yard.store.clone(), yard.settings.worker.clone());
    let worker = Worker::new(broker, store, yard.topology.clone(), settings, &registry).unwrap();
    let worker = worker.tenants(["default".to_owned()]).model(spec("m"), Arc::new(Asking));
    tokio::spawn(worker.run(CancellationToken::new(), CancellationToken::new()));
    yard.scheduler(&[spec("m")]);
    let ids = yard.publish(vec![json!({"model": "m", "input": 1})]).await;
    yard.collect(&ids).await;
    let result = yard.result(&ids[0]);
    let took = Usage { prompt_tokens: 20, completion_tokens: 10, cost: Some(0.5) };
    assert_eq!((result.state, result.attempt, result.usage), (State::Succeeded, 2, Some(took)));
    let text = registry.render().unwrap();
    for counted in [
        "taskyard_tokens_total{kind=\"prompt\",model=\"m\",tenant=\"default\"} 30",
        "taskyard_tokens_total{kind=\"completion\",model=\"m\",tenant=\"default\"} 15",
        "taskyard_token_cost_total{model=\"m\",tenant=\"default\"} 0.75",
    ] {
        assert!(text.lines().any(|line| line == counted), "{counted}: {text}");
    }
}
