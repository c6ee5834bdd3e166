//! Submits tasks over the broker and awaits their results.
//!
//! A yard has to be running on the same broker, for instance two terminals with `taskyard scheduler` and
//! `taskyard worker`. The broker is read as every role reads it:
//!
//! ```sh
//! export TASKYARD__BROKER__URL=amqp://guest:guest@127.0.0.1:5672
//! cargo run -p taskyard-producer --example submit -- MODEL '{"any": "input"}'
//! ```

use std::error::Error;
use std::time::Duration;

use serde_json::value::RawValue;
use taskyard_producer::Client;
use taskyard_producer::client::task;
use taskyard_shared::{Priority, State, Topology};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(model), Some(input)) = (arguments.next(), arguments.next()) else {
        return Err("usage: submit MODEL INPUT".into());
    };
    let input = RawValue::from_string(input)?;

    let settings = taskyard_shared::process::config::load(None)?.settings;
    // For amqps://; a process chooses once who does its TLS.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let broker = taskyard_shared::process::connect::open_broker(&settings).await?;
    let client = Client::new(broker.clone(), Topology::new(settings.broker.namespace));

    // One task whose result is not wanted: accepted once this returns.
    let submitted = client.submit(task(&model, &input)?).await?;
    println!("accepted {}", submitted.id.0);

    // One task whose result is. Everything but model and input is left open, and can be set.
    let mut urgent = task(&model, &input)?;
    urgent.priority = Some(Priority::HIGHEST);
    urgent.deadline_ms = Some(30_000);
    match client.submit_and_wait(urgent, Duration::from_secs(30)).await? {
        Ok(result) => println!("{}", serde_json::to_string_pretty(&result)?),
        // The task goes on; with its id the result can be looked up later.
        Err(late) => eprintln!("{late}"),
    }

    // Many tasks in few messages; each is answered, and awaited, by itself.
    let many = (0..100).map(|_| task(&model, &input)).collect::<Result<_, _>>()?;
    let mut succeeded = 0;
    for pending in client.request_batch(many).await? {
        let result = pending?.result(Duration::from_secs(30)).await?;
        succeeded += usize::from(result.state == State::Succeeded);
    }
    println!("{succeeded} of 100 succeeded");

    drop(client);
    broker.close().await;
    Ok(())
}
