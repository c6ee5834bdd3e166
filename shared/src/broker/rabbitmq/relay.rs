//! A plain relay: the least that a task queue on RabbitMQ can do with a message, as the measure of what Taskyard costs.
//!
//! One hop takes messages from a queue and publishes each, unchanged, to the next: persistent, mandatory, confirmed by
//! itself, and acked by itself once it is. Hops are pipelined, and written straight on the client library, without what
//! the adapter does for its promises: a cut ends the hop.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use futures_util::stream::SelectAll;
use futures_util::{FutureExt, StreamExt};
use lapin::message::Delivery;
use lapin::options::{
    BasicAckOptions, BasicConsumeOptions, BasicPublishOptions, BasicQosOptions, ConfirmSelectOptions,
};
use lapin::types::{FieldTable, ShortString};
use lapin::{Acker, Channel, Confirmation};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use super::convert::short;
use super::endpoint::Endpoint;
use super::errors::broker_error;
use crate::broker::{BrokerError, Operations};
use crate::process::settings::BrokerSettings;

/// One hop of a relay.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Hop {
    /// At least one. All of them are read over one channel.
    pub from: Vec<String>,
    /// In turns. None: to the queue that the message names in `reply_to`.
    pub to: Vec<String>,
    /// Most deliveries of a queue that are not acked, and most confirms awaited.
    pub in_flight: u16,
}

type Publishing = Pin<Box<dyn Future<Output = lapin::Result<Confirmation>> + Send>>;

/// Relays until `stop`, or until something does not go as it should. What it does is counted in `operations`.
///
/// # Errors
/// When the broker cannot be reached, is lost, or does not take a message.
pub async fn relay(
    settings: &BrokerSettings,
    hop: Hop,
    operations: Arc<Operations>,
    stop: CancellationToken,
) -> Result<(), BrokerError> {
    let endpoint = Endpoint::new(settings)?.counting(operations);
    let ((consuming, _in), (publishing, _out)) =
        tokio::try_join!(endpoint.connect("relay consuming"), endpoint.connect("relay publishing"))?;
    let lost = |error: lapin::Error| broker_error(&error);
    let outgoing = publishing.create_channel().await.map_err(lost)?;
    outgoing.confirm_select(ConfirmSelectOptions::default()).await.map_err(lost)?;
    let incoming = consuming.create_channel().await.map_err(lost)?;
    incoming.basic_qos(hop.in_flight.max(1), BasicQosOptions::default()).await.map_err(lost)?;
    let mut deliveries = SelectAll::new();
    for from in &hop.from {
        let (from, options, none) = (name(from)?, BasicConsumeOptions::default(), FieldTable::default());
        deliveries.push(incoming.basic_consume(from, ShortString::default(), options, none).await.map_err(lost)?);
    }
    let to = hop.to.iter().map(|to| name(to)).collect::<Result<Vec<ShortString>, BrokerError>>()?;
    let mut to = to.iter().cycle();

    let (published, confirming) = mpsc::channel(usize::from(hop.in_flight.max(1)));
    let acking = tokio::spawn(ack_confirmed(confirming));
    let ended = loop {
        let delivery = tokio::select! {
            delivery = deliveries.next() => delivery,
            () = stop.cancelled() => break Ok(()),
            // Something was not confirmed: the other side has the reason.
            () = published.closed() => break Ok(()),
        };
        let delivery = match delivery {
            Some(Ok(delivery)) => delivery,
            Some(Err(error)) => break Err(lost(error)),
            None => break Err(BrokerError::Cut("the queue is gone".into())),
        };
        let Some(to) = to.next().cloned().or_else(|| delivery.properties.reply_to().clone()) else {
            break Err(BrokerError::Refused("a message names no reply_to".into()));
        };
        let acker = delivery.acker.clone();
        let mut publishing: Publishing = Box::pin(publish(outgoing.clone(), to, delivery));
        // The first poll puts it into the client's queue: in order. Its end is for the other side to see.
        let confirmed = (&mut publishing).now_or_never();
        if published.send((publishing, confirmed, acker)).await.is_err() {
            break Ok(());
        }
    };
    drop(published);
    let acked = acking.await.unwrap_or_else(|failure| Err(BrokerError::Cut(format!("acking ended: {failure}"))));
    // It ends here whatever becomes of the goodbye.
    let _ = tokio::join!(consuming.close(200, "bye".into()), publishing.close(200, "bye".into()));
    ended.and(acked)
}

async fn publish(channel: Channel, to: ShortString, delivery: Delivery) -> lapin::Result<Confirmation> {
    let options = BasicPublishOptions { mandatory: true, immediate: false };
    let Delivery { data, properties, .. } = delivery;
    channel.basic_publish(ShortString::default(), to, options, &data, properties).await?.await
}

type Published = (Publishing, Option<lapin::Result<Confirmation>>, Acker);

async fn ack_confirmed(mut confirming: mpsc::Receiver<Published>) -> Result<(), BrokerError> {
    while let Some((publishing, confirmed, acker)) = confirming.recv().await {
        let confirmation = match confirmed {
            Some(confirmation) => confirmation,
            None => publishing.await,
        };
        match confirmation.map_err(|error| broker_error(&error))? {
            Confirmation::Ack(None) => {}
            Confirmation::Ack(Some(_)) => return Err(BrokerError::Refused("no queue takes a message".into())),
            Confirmation::Nack(_) => return Err(BrokerError::Refused("a queue is full".into())),
            Confirmation::NotRequested => return Err(BrokerError::Refused("the channel gives no confirms".into())),
        }
        // The first poll puts it into the client's queue; when it cannot be written, the connection is lost, which the
        // consumer sees.
        if let Some(Err(error)) = acker.ack(BasicAckOptions { multiple: false }).now_or_never() {
            return Err(broker_error(&error));
        }
    }
    Ok(())
}

fn name(name: &str) -> Result<ShortString, BrokerError> {
    short(name).map_err(|_| BrokerError::Refused(format!("a name of {} bytes is too long for AMQP", name.len())))
}
