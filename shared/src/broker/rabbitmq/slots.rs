//! RabbitMQ's own priority queue with a consumer of prefetch 1 for each slot: what a task queue does that leaves the order
//! to the broker, as the measure of how long an urgent task has to wait.
//!
//! A slot waits for the broker twice a task: until the result is confirmed, and for the next task. Many such set-ups leave
//! out the first, and lose a result with its task when the broker goes down in between: both can be measured.

use std::pin::pin;
use std::sync::Arc;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use futures_util::{FutureExt, StreamExt};
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
    QueueDeclareOptions,
};
use lapin::types::{AMQPValue, FieldTable, ShortString};
use lapin::{BasicProperties, Channel, Connection};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::convert::short;
use super::endpoint::Endpoint;
use super::errors::broker_error;
use crate::broker::{BrokerError, Operations};
use crate::process::settings::BrokerSettings;

/// Takes a task's body and answers its result's.
pub type Work = Arc<dyn Fn(Bytes) -> BoxFuture<'static, Vec<u8>> + Send + Sync>;

/// The slots of one process.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slots {
    pub queue: String,
    pub count: u16,
    /// Whether a result is confirmed before its task is acked.
    pub confirmed: bool,
}

/// Declares a durable classic queue with the priorities 0 to `most`; quorum queues have none of these.
///
/// # Errors
/// When the broker cannot be reached or does not want it.
pub async fn declare_priority_queue(settings: &BrokerSettings, queue: &str, most: u8) -> Result<(), BrokerError> {
    let (connection, _socket) = Endpoint::new(settings)?.connect("priority queue").await?;
    let channel = connection.create_channel().await.map_err(lost)?;
    let options = QueueDeclareOptions { durable: true, ..QueueDeclareOptions::default() };
    let mut arguments = FieldTable::default();
    arguments.insert("x-queue-type".into(), AMQPValue::LongString("classic".into()));
    arguments.insert("x-max-priority".into(), AMQPValue::ShortShortUInt(most));
    channel.queue_declare(name(queue)?, options, arguments).await.map_err(lost)?;
    connection.close(200, "bye".into()).await.map_err(lost)
}

/// Works on the queue until `stop`. What is done is counted in `operations`.
///
/// # Errors
/// When the broker cannot be reached or is lost.
pub async fn work_on(
    settings: &BrokerSettings,
    slots: &Slots,
    work: Work,
    operations: Arc<Operations>,
    stop: CancellationToken,
) -> Result<(), BrokerError> {
    let (connection, _socket) =
        Endpoint::new(settings)?.counting(operations).connect("priority queue consuming").await?;
    let mut running = JoinSet::new();
    for _ in 0..slots.count.max(1) {
        let channel = open(&connection, slots.confirmed).await?;
        running.spawn(slot(channel, name(&slots.queue)?, slots.confirmed, work.clone(), stop.clone()));
    }
    let mut ended = Ok(());
    while let Some(slot) = running.join_next().await {
        let slot = slot.unwrap_or_else(|failure| Err(BrokerError::Cut(format!("a slot ended: {failure}"))));
        if slot.is_err() {
            // The others would wait for ever.
            stop.cancel();
        }
        ended = ended.and(slot);
    }
    // It ends here whatever becomes of the goodbye.
    let _ = connection.close(200, "bye".into()).await;
    ended
}

async fn open(connection: &Connection, confirmed: bool) -> Result<Channel, BrokerError> {
    let channel = connection.create_channel().await.map_err(lost)?;
    channel.basic_qos(1, BasicQosOptions::default()).await.map_err(lost)?;
    if confirmed {
        channel.confirm_select(ConfirmSelectOptions::default()).await.map_err(lost)?;
    }
    Ok(channel)
}

async fn slot(
    channel: Channel,
    queue: ShortString,
    confirmed: bool,
    work: Work,
    stop: CancellationToken,
) -> Result<(), BrokerError> {
    let (options, none) = (BasicConsumeOptions::default(), FieldTable::default());
    let mut deliveries = channel.basic_consume(queue, ShortString::default(), options, none).await.map_err(lost)?;
    loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            () = stop.cancelled() => return Ok(()),
        };
        let delivery = match delivery {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => return Err(lost(error)),
            None => return Err(BrokerError::Cut("the queue is gone".into())),
        };
        let to = delivery.properties.reply_to().clone();
        let result = work(Bytes::from(delivery.data)).await;
        if let Some(to) = to {
            let properties = BasicProperties::default().with_delivery_mode(2);
            let options = BasicPublishOptions { mandatory: true, immediate: false };
            let mut publishing = pin!(channel.basic_publish(ShortString::default(), to, options, &result, properties));
            // The first poll puts it into the client's queue; when it cannot be written, the connection is lost, which
            // the consumer sees. So with the ack.
            match (publishing.as_mut().now_or_never(), confirmed) {
                (Some(Err(error)), _) => return Err(lost(error)),
                (Some(Ok(confirm)), true) => drop(confirm.await.map_err(lost)?),
                (None, true) => drop(publishing.await.map_err(lost)?.await.map_err(lost)?),
                (_, false) => {}
            }
        }
        if let Some(Err(error)) = delivery.acker.ack(BasicAckOptions { multiple: false }).now_or_never() {
            return Err(lost(error));
        }
    }
}

fn lost(error: lapin::Error) -> BrokerError {
    broker_error(&error)
}

fn name(name: &str) -> Result<ShortString, BrokerError> {
    short(name).map_err(|_| BrokerError::Refused(format!("a name of {} bytes is too long for AMQP", name.len())))
}
