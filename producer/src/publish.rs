//! A task becomes a message on the tasks exchange, and is accepted once the broker confirmed it.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use taskyard_shared::broker::{Broker, BrokerError, Destination, Message, Properties, PublishError, QueueSpec};
use taskyard_shared::messages::{WORKFLOW_TYPE, ask_for, work_queues};
use taskyard_shared::workflow::WorkflowOrder;
use taskyard_shared::{Envelope, Invalid, Reply, Topology, wire};

/// Publishes to the tasks exchange of one yard.
#[derive(Clone)]
pub struct Publisher {
    broker: Arc<dyn Broker>,
    exchange: String,
    queues: Vec<QueueSpec>,
}

impl Publisher {
    pub fn new(broker: Arc<dyn Broker>, topology: &Topology) -> Self {
        Self { broker, exchange: topology.tasks_exchange(), queues: work_queues(topology) }
    }

    /// Declares the tasks exchange and the queues that all roles share.
    ///
    /// # Errors
    /// As [`Broker::declare`] has them.
    pub async fn declare(&self) -> Result<(), BrokerError> {
        self.broker.declare(&self.queues).await
    }

    /// The message of one task.
    pub fn single(&self, envelope: &Envelope, body: Bytes, reply: Option<&Reply>) -> Message {
        let key = envelope.model().unwrap_or("any").to_owned();
        let mut message = self.message(key, body, reply);
        message.properties.message_id = Some(envelope.id.0.to_string());
        for (name, value) in
            [("traceparent", &envelope.extras.traceparent), ("tracestate", &envelope.extras.tracestate)]
        {
            if let Some(value) = value {
                message.properties.headers.insert(name.to_owned(), value.to_string());
            }
        }
        message
    }

    /// The message of a JSON array of tasks, each of which carries its id.
    pub fn array(&self, body: Bytes, reply: Option<&Reply>) -> Message {
        self.message("batch".to_owned(), body, reply)
    }

    /// The message of a workflow, as its caller wrote it.
    pub fn workflow(&self, order: &WorkflowOrder, body: Bytes) -> Message {
        let mut message = self.message("workflow".to_owned(), body, None);
        message.properties.kind = Some(WORKFLOW_TYPE.to_owned());
        message.properties.message_id = Some(order.id.0.to_string());
        message.properties.app_id = Some(order.tenant.clone());
        for (name, value) in [("traceparent", &order.traceparent), ("tracestate", &order.tracestate)] {
            if let Some(value) = value {
                message.properties.headers.insert(name.to_owned(), value.clone());
            }
        }
        message
    }

    fn message(&self, key: String, body: Bytes, reply: Option<&Reply>) -> Message {
        let mut properties = Properties { content_type: Some("application/json".to_owned()), ..Properties::default() };
        if let Some(reply) = reply {
            ask_for(&mut properties, reply);
        }
        Message {
            to: Destination::Exchange { name: self.exchange.clone(), key },
            body,
            properties,
            persistent: true,
            mandatory: true,
        }
    }

    /// Publishes all and awaits their confirms, at most for `limit` whatever the broker's own time-out is: one answer
    /// per message, in their order. `Ok` means accepted.
    pub async fn publish(&self, messages: Vec<Message>, limit: Duration) -> Vec<Result<(), PublishError>> {
        let count = messages.len();
        let unknown = |why: String| vec![Err(PublishError::Unknown(why)); count];
        match tokio::time::timeout(limit, self.broker.publish(messages)).await {
            Ok(answers) if answers.len() == count => answers,
            Ok(answers) => unknown(format!("{} answers to {count} messages", answers.len())),
            Err(_) => unknown(format!("no confirm within {} ms", limit.as_millis())),
        }
    }
}

/// The body of a task's message: what was asked for, with what [`Envelope::new`] filled in.
///
/// # Errors
/// When a value cannot be written as JSON, such as an instant beyond the year 9999.
pub fn encode(envelope: &Envelope) -> Result<Vec<u8>, Invalid> {
    wire::write(&envelope.to_task()).map_err(|error| Invalid::field("body", error))
}
