//! A yard of real processes, and a publisher that stands outside it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use taskyard_shared::broker::rabbitmq::RabbitMq;
use taskyard_shared::broker::{Broker, Destination, Message, Properties, QueueSpec, Verdict};
use taskyard_shared::process::settings::{BrokerSettings, Settings};
use taskyard_shared::{TaskResult, Topology};
use uuid::Uuid;

use crate::harness::{Place, Role, Servers, environment, models_file};

pub struct Yard {
    pub place: Place,
    pub environment: Vec<(String, String)>,
    models: PathBuf,
    folder: tempfile::TempDir,
}

impl Yard {
    pub fn new(servers: &Servers, models: &str) -> Self {
        let place = Place::new(servers);
        let environment = environment(&place);
        let folder = tempfile::tempdir().unwrap();
        let models = models_file(folder.path(), models);
        Self { place, environment, models, folder }
    }

    pub fn role(&self, arguments: &[&str]) -> Role {
        self.role_with(&self.models, arguments)
    }

    /// One with a configuration file of its own.
    pub fn role_with(&self, models: &Path, arguments: &[&str]) -> Role {
        let models = models.to_string_lossy();
        let mut all = vec!["--config", &models];
        all.extend(arguments);
        Role::start(&all, &self.environment)
    }

    /// Starts one whenever it is called, from anywhere.
    pub fn starter(&self, arguments: &[&str]) -> impl Fn() -> Role + Send + use<> {
        let (models, environment) = (self.models.to_string_lossy().into_owned(), self.environment.clone());
        let arguments: Vec<String> = arguments.iter().map(|argument| (*argument).to_owned()).collect();
        move || {
            let mut all = vec!["--config", &models];
            all.extend(arguments.iter().map(String::as_str));
            Role::start(&all, &environment)
        }
    }

    /// A file beside the models' one, which their commands may name.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.path().join(name), text).unwrap();
    }

    pub fn scheduler(&self) -> Role {
        let role = self.role(&["scheduler"]);
        role.wait_for_line("active");
        role
    }

    pub fn worker(&self) -> Role {
        let role = self.role(&["worker"]);
        role.wait_for_line("takes tasks");
        role
    }

    pub async fn publisher(&self) -> Publisher {
        Publisher::new(&self.place).await
    }
}

/// Publishes and collects results, by the port that the roles use too.
pub struct Publisher {
    pub broker: Arc<dyn Broker>,
    pub topology: Topology,
    replies: String,
    pub results: HashMap<Uuid, TaskResult>,
    /// Results told more than once, the same or not.
    pub told_again: usize,
    pub differing: usize,
}

impl Publisher {
    pub async fn new(place: &Place) -> Self {
        let settings = BrokerSettings { url: place.amqp.clone(), ..Settings::default().broker };
        let replies = QueueSpec::exclusive(format!("replies-{}", Uuid::new_v4().simple()));
        Self::with(&settings, Topology::new(&place.namespace), replies).await
    }

    pub async fn with(settings: &BrokerSettings, topology: Topology, replies: QueueSpec) -> Self {
        let broker: Arc<dyn Broker> = Arc::new(RabbitMq::connect(settings).await.unwrap());
        broker.declare(std::slice::from_ref(&replies)).await.unwrap();
        let replies = replies.name;
        Self { broker, topology, replies, results: HashMap::new(), told_again: 0, differing: 0 }
    }

    pub fn message(&self, id: Uuid, body: impl Into<Bytes>) -> Message {
        Message {
            to: Destination::Exchange { name: self.topology.tasks_exchange(), key: "any".into() },
            body: body.into(),
            properties: Properties {
                message_id: Some(id.to_string()),
                correlation_id: Some(id.to_string()),
                reply_to: Some(self.replies.clone()),
                content_type: Some("application/json".into()),
                ..Properties::default()
            },
            persistent: true,
            mandatory: true,
        }
    }

    /// Publishes, and answers the id of each once all are accepted.
    pub async fn publish(&self, bodies: Vec<serde_json::Value>) -> Vec<Uuid> {
        let ids: Vec<Uuid> = bodies.iter().map(|_| Uuid::new_v4()).collect();
        let messages = ids.iter().zip(bodies).map(|(id, body)| self.message(*id, body.to_string())).collect();
        for answer in self.broker.publish(messages).await {
            answer.unwrap();
        }
        ids
    }

    /// Collects until every one of these has its result.
    pub async fn collect(&mut self, ids: &[Uuid]) {
        let mut consumer = self.broker.consume(&self.replies, 500).await.unwrap();
        let acker = consumer.acker();
        while ids.iter().any(|id| !self.results.contains_key(id)) {
            let missing = ids.iter().filter(|id| !self.results.contains_key(id)).count();
            let batch = tokio::time::timeout(Duration::from_secs(90), consumer.next_batch(500))
                .await
                .unwrap_or_else(|_| panic!("{missing} results do not come"))
                .unwrap();
            for delivery in &batch {
                let result: TaskResult = serde_json::from_slice(&delivery.body).unwrap();
                let told = serde_json::to_string(&result).unwrap();
                if let Some(first) = self.results.insert(result.id.0, result) {
                    self.told_again += 1;
                    self.differing += usize::from(serde_json::to_string(&first).unwrap() != told);
                }
            }
            acker.settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
    }

    /// Reads all that is in the dead letters: reason, detail and body.
    pub async fn dead_letters(&self, at_least: usize) -> Vec<(String, String, String)> {
        let mut consumer = self.broker.consume(&self.topology.dead(), 100).await.unwrap();
        let acker = consumer.acker();
        let mut letters = Vec::new();
        while letters.len() < at_least {
            let batch = tokio::time::timeout(Duration::from_secs(60), consumer.next_batch(100))
                .await
                .unwrap_or_else(|_| panic!("{} dead letters instead of {at_least}", letters.len()))
                .unwrap();
            for delivery in &batch {
                let header = |name: &str| delivery.properties.headers.get(name).cloned().unwrap_or_default();
                let body = String::from_utf8_lossy(&delivery.body).into_owned();
                letters.push((header("x-taskyard-reason"), header("x-taskyard-detail"), body));
            }
            acker.settle(batch.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
        }
        letters
    }
}
