//! Runs the workflows of a shard: sends their steps, takes in how these end, writes down how far each has come.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use taskyard_shared::broker::{
    self, Acker, Broker, BrokerError, Consumer, Delivery, Message, Need, Receipt, Verdict, publish_surely,
};
use taskyard_shared::control::{Ask, Fate, Question, TASKS, Told};
use taskyard_shared::dead::{Letter, Origin};
use taskyard_shared::store::{Accept, Accepted, Store, WorkflowAccepted};
use taskyard_shared::workflow::{Machine, WorkflowId, WorkflowOrder, WorkflowState};
use taskyard_shared::{Envelope, Reply, State, TaskId, TaskResult, Timestamp, Topology, messages, wire};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::{debug, info, warn};

use super::Unwanted;
use super::expected;
use super::published::CONFLICT;
use super::run::{Run, Todo};
use super::tell::Teller;
use crate::control::Asked;
use crate::core::Event;
use crate::finish::Finisher;
use crate::metrics::Metrics;

/// Messages of results read at once, and held until they are taken in.
const RESULTS: usize = 512;
/// Records asked of the store at once.
const GROUP: usize = 512;
/// Steps of one message, and about how many bytes.
const MESSAGE_STEPS: usize = 256;
const MESSAGE_BYTES: usize = 1 << 20;
/// What is written and what is due is looked at so often.
const TICK: Duration = Duration::from_millis(100);
/// Results that did not come are looked up so often, so many of a workflow at once.
const LOOK_EVERY: Duration = Duration::from_secs(30);
const LOOK_AT: usize = 1_000;
/// Workflows that ended while their copies were on their way round are remembered until these have come.
const ON_THEIR_WAY: usize = 10_000;

pub(crate) struct Coordinator {
    pub broker: Arc<dyn Broker>,
    pub store: Arc<dyn Store>,
    pub topology: Topology,
    pub metrics: Metrics,
    pub finisher: Finisher,
    /// Whose workflows.
    pub shard: u32,
    /// How many there are.
    pub shards: u32,
    /// Workflows that run at once; others wait.
    pub most: usize,
    /// A delivery is held for no longer than this.
    pub patience: Duration,
    pub events: mpsc::Sender<Event>,
    pub unwanted: mpsc::Receiver<Unwanted>,
    pub closing: CancellationToken,
}

/// What happens to a workflow that runs, beside its steps.
struct Board {
    runs: BTreeMap<WorkflowId, Run>,
    /// Deliveries that wait for room.
    waiting: VecDeque<(Delivery, Instant)>,
    /// Being written and told of.
    finishing: HashSet<WorkflowId>,
    /// What came again of these meanwhile: it is told of the end that is being written.
    deferred: HashMap<WorkflowId, Vec<Delivery>>,
    /// They have ended, all of them were told, and their copies are still to come.
    on_their_way: VecDeque<(WorkflowId, Vec<Reply>)>,
    writing: JoinSet<(WorkflowId, Duration)>,
    telling: JoinSet<WorkflowId>,
    looked: Instant,
    workflows: Arc<dyn Acker>,
    steps_queue: String,
}

impl Coordinator {
    /// Runs them until the session is cut, or closing. What is not acked comes again.
    pub async fn run(mut self) -> Result<(), BrokerError> {
        let prefetch = u16::try_from(self.most).unwrap_or(u16::MAX);
        let steps_queue = self.topology.steps(self.shard);
        let mut results = self.broker.consume(&steps_queue, RESULTS as u16).await?;
        let mut orders = self.broker.consume(&self.topology.workflows(self.shard), prefetch).await?;
        let result_acker = results.acker();
        let mut board = Board {
            runs: BTreeMap::new(),
            waiting: VecDeque::new(),
            finishing: HashSet::new(),
            deferred: HashMap::new(),
            on_their_way: VecDeque::new(),
            writing: JoinSet::new(),
            telling: JoinSet::new(),
            looked: Instant::now(),
            workflows: orders.acker(),
            steps_queue,
        };
        let answer = self.go_on(&mut board, &mut *orders, &mut *results, &result_acker).await;
        self.metrics.workflows_active(-(board.runs.len() as i64));
        answer
    }

    async fn go_on(
        &mut self,
        board: &mut Board,
        orders: &mut dyn Consumer,
        results: &mut dyn Consumer,
        result_acker: &Arc<dyn Acker>,
    ) -> Result<(), BrokerError> {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            let mut touched = BTreeSet::new();
            tokio::select! {
                biased;
                () = self.closing.cancelled() => return Ok(()),
                deliveries = results.next_batch(RESULTS) => {
                    let deliveries = deliveries?;
                    self.take_results(board, &deliveries, &mut touched);
                    // What they lead to is sent before they are acked, though nothing would be lost otherwise: then a crash
                    // in between repeats less.
                    if !self.pump(board, touched).await {
                        return Ok(());
                    }
                    result_acker.settle(deliveries.iter().map(|delivery| delivery.tag).collect(), Verdict::Ack).await;
                    continue;
                }
                Some((id, answer)) = self.unwanted.recv() => self.cancel(board, id, answer, &mut touched),
                Some(written) = board.writing.join_next(), if !board.writing.is_empty() => {
                    if let Ok((id, took)) = written && let Some(run) = board.runs.get_mut(&id) {
                        run.was_written(took);
                    }
                }
                Some(told) = board.telling.join_next(), if !board.telling.is_empty() => {
                    if let Ok(id) = told {
                        board.finishing.remove(&id);
                        let now = Instant::now();
                        let deferred = board.deferred.remove(&id).unwrap_or_default();
                        board.waiting.extend(deferred.into_iter().map(|delivery| (delivery, now)));
                    }
                }
                deliveries = orders.next_batch(8) => {
                    let now = Instant::now();
                    board.waiting.extend(deliveries?.into_iter().map(|delivery| (delivery, now)));
                }
                _ = tick.tick() => {
                    self.look_up(board, &mut touched).await;
                    self.expire(board, &mut touched);
                    self.write(board);
                    self.send_round(board).await;
                }
            }
            while board.runs.len() < self.most
                && let Some((delivery, _)) = board.waiting.pop_front()
            {
                if let Some(id) = self.begin(board, delivery).await {
                    touched.insert(id);
                }
            }
            if !self.pump(board, touched).await {
                return Ok(());
            }
        }
    }

    /// A workflow that came, or came again.
    async fn begin(&self, board: &mut Board, delivery: Delivery) -> Option<WorkflowId> {
        let receipt = Receipt::split(delivery.tag, &board.workflows, 1).pop()?;
        let (order, plan) = match WorkflowOrder::again(&delivery.body) {
            Ok(read) => read,
            Err(why) => {
                self.bury(delivery, receipt, &why).await;
                return None;
            }
        };
        let id = order.id;
        if board.finishing.contains(&id) {
            board.deferred.entry(id).or_default().push(delivery);
            return None;
        }
        let is_told = |told: &[Reply]| order.replies().all(|reply| told.contains(reply));
        if let Some(at) = board.on_their_way.iter().position(|(ended, told)| *ended == id && is_told(told)) {
            board.on_their_way.remove(at);
            broker::settle(vec![receipt], Verdict::Ack).await;
            return None;
        }
        let fingerprint = order.fingerprint(&plan);
        if let Some(run) = board.runs.get_mut(&id) {
            if run.fingerprint == fingerprint {
                self.came_again(run, order, receipt).await;
            } else {
                self.refuse(&order, receipt).await;
            }
            return None;
        }
        let plan = Arc::new(plan);
        let machine = Machine::new(plan.clone());
        let mut run = Run::new(order, machine, fingerprint, receipt);
        let mut is_unwanted = false;
        match run.write(WorkflowState::Running) {
            Err(failure) => warn!(%failure, "a workflow cannot be written down"),
            Ok(write) => match self.store.accept_workflow(write).await {
                Ok(WorkflowAccepted::New { is_unwanted: marked }) => is_unwanted = marked,
                Ok(WorkflowAccepted::Known(seen)) if seen.has_ended => {
                    self.tell_again(&run.order, seen.record.clone(), run.receipt).await;
                    return None;
                }
                Ok(WorkflowAccepted::Known(seen)) => is_unwanted = seen.is_unwanted,
                Ok(WorkflowAccepted::Conflict(_)) => {
                    if let Some(receipt) = run.receipt {
                        self.refuse(&run.order, receipt).await;
                    }
                    return None;
                }
                Err(failure) => {
                    debug!(%failure, "a workflow begins without the store");
                    self.metrics.store_failed("accept_workflow");
                }
            },
        }
        if let Some(seconds) = expected::ask(&plan, &self.events).await {
            run.remaining = plan.remaining(|step| seconds.get(step as usize).copied().unwrap_or(0.0));
        }
        self.record_steps(&mut run, &board.steps_queue).await;
        if run.is_again || !is_unwanted {
            run.machine.start();
        }
        if is_unwanted {
            run.machine.cancel();
        }
        debug!(workflow.id = %id.0, steps = plan.len(), again = run.is_again, "a workflow begins");
        self.metrics.workflows_active(1);
        board.runs.insert(id, run);
        Some(id)
    }

    /// The copy of one that runs, which went round, or the same published again.
    async fn came_again(&self, run: &mut Run, again: WorkflowOrder, receipt: Receipt) {
        if run.follow(&again) {
            // Who publishes again is told also when this process is no more: a copy that says so replaces both messages.
            let Ok(copy) = messages::workflow(&self.topology, self.shard, &run.order) else { return };
            if publish_surely(&*self.broker, vec![(copy, Need::Work)], &self.closing).await.is_ok() {
                broker::settle(run.receipt.take().into_iter().chain([receipt]).collect(), Verdict::Ack).await;
            }
        } else if run.receipt.is_none() && again.tells_all_of(&run.order) {
            (run.receipt, run.since) = (Some(receipt), Instant::now());
        } else {
            // Of what is held, or of a copy that is still to come.
            broker::settle(vec![receipt], Verdict::Ack).await;
        }
    }

    /// Another workflow has its id. Intake tells that, unless the store was away then.
    async fn refuse(&self, order: &WorkflowOrder, receipt: Receipt) {
        warn!(workflow.id = %order.id.0, "the same id came with another content: the first one stands");
        let refused = order.refused_again(CONFLICT.0, CONFLICT.1.to_owned(), Timestamp::now());
        match serde_json::to_vec(&refused) {
            Ok(record) => self.tell_again(order, record.into(), Some(receipt)).await,
            Err(failure) => warn!(%failure, "a refusal cannot be written down"),
        }
    }

    /// Every step has a record from the start, as blocked. What is known of one that was begun before is kept.
    async fn record_steps(&self, run: &mut Run, steps_queue: &str) {
        let plan = run.machine.plan().clone();
        let single: Vec<u32> =
            (0u32..).zip(&plan.steps).filter(|(_, step)| !step.is_fanned_out()).map(|(at, _)| at).collect();
        for steps in single.chunks(GROUP) {
            let entrant = |step: &u32| {
                let mut envelope = run.envelope(*step, None, None, steps_queue)?;
                envelope.accepted = run.order.accepted;
                let record = envelope.result(State::Blocked);
                Some((
                    *step,
                    Accept {
                        id: envelope.id,
                        fingerprint: envelope.fingerprint(),
                        alias: None,
                        record,
                        follower: None,
                    },
                ))
            };
            let (steps, accepts): (Vec<u32>, Vec<Accept>) = steps.iter().filter_map(entrant).unzip();
            match self.store.accept(accepts).await {
                Ok(accepted) => {
                    for (step, accepted) in steps.into_iter().zip(accepted) {
                        match accepted {
                            Accepted::New | Accepted::Conflict(_) => {}
                            Accepted::Known(record) | Accepted::Unwanted(record) => {
                                run.is_again = true;
                                if record.state.is_terminal() {
                                    run.known.insert(step, *record);
                                }
                            }
                        }
                    }
                }
                Err(failure) => {
                    debug!(%failure, "steps are not recorded before they run");
                    self.metrics.store_failed("accept");
                    // Whether there is anything to be known is not known.
                    run.is_again = true;
                }
            }
        }
    }

    fn take_results(&self, board: &mut Board, deliveries: &[Delivery], touched: &mut BTreeSet<WorkflowId>) {
        for delivery in deliveries {
            let results = match wire::read_all::<TaskResult>(&delivery.body) {
                Ok(results) => results,
                Err(failure) => {
                    warn!(%failure, "a message of results cannot be read and is dropped");
                    continue;
                }
            };
            for result in results {
                let Some(id) = result.workflow.as_ref().map(|of| of.id) else { continue };
                if let Some(run) = board.runs.get_mut(&id)
                    && run.handle_result(result)
                {
                    touched.insert(id);
                }
            }
        }
    }

    fn cancel(
        &self,
        board: &mut Board,
        id: WorkflowId,
        answer: oneshot::Sender<Told>,
        touched: &mut BTreeSet<WorkflowId>,
    ) {
        let fate = match board.runs.get_mut(&id) {
            Some(run) => {
                run.machine.cancel();
                touched.insert(id);
                Fate::Dispatched
            }
            None if board.finishing.contains(&id) => Fate::Finished,
            // What waits finds in the store that it is not wanted.
            None => Fate::Unknown,
        };
        let _gone = answer.send(Told::Fates { fates: vec![(TaskId(id.0), fate)] });
    }

    /// Does all that there is to be done for these. `false` when closing.
    async fn pump(&self, board: &mut Board, touched: BTreeSet<WorkflowId>) -> bool {
        let mut all = Todo::default();
        for id in touched {
            let Some(run) = board.runs.get_mut(&id) else { continue };
            loop {
                let Todo { submit, end, stop } = run.todo(&board.steps_queue);
                if !end.is_empty() {
                    run.ending.spawn(self.finisher.clone().end_undelivered(end));
                }
                all.stop.extend(stop);
                let (submit, has_news) =
                    if run.is_again { self.unless_ended(run, submit).await } else { (submit, false) };
                all.submit.extend(submit);
                if !has_news {
                    break;
                }
            }
            if run.machine.is_over() {
                self.finish(board, id);
            }
        }
        if !all.submit.is_empty()
            && publish_surely(&*self.broker, self.packed(&all.submit), &self.closing).await.is_err()
        {
            return false;
        }
        self.stop(all.stop).await;
        true
    }

    /// Of steps that an earlier scheduler may have sent: those that have not ended. The others are told to the machine, and
    /// whether there were any.
    async fn unless_ended(&self, run: &mut Run, submit: Vec<Envelope>) -> (Vec<Envelope>, bool) {
        let mut open = Vec::with_capacity(submit.len());
        let mut has_news = false;
        let mut submit = submit.into_iter().peekable();
        while submit.peek().is_some() {
            let group: Vec<Envelope> = submit.by_ref().take(GROUP).collect();
            let records = match self.store.get(group.iter().map(|envelope| envelope.id).collect()).await {
                Ok(records) => records,
                Err(failure) => {
                    // Sent again, they are told apart by whoever takes them in.
                    debug!(%failure, "steps are sent without a look at their records");
                    self.metrics.store_failed("get");
                    open.extend(group);
                    continue;
                }
            };
            for (envelope, record) in group.into_iter().zip(records) {
                match record.filter(|record| record.state.is_terminal()) {
                    Some(record) => has_news |= run.handle_result(record),
                    None => open.push(envelope),
                }
            }
        }
        (open, has_news)
    }

    fn packed(&self, steps: &[Envelope]) -> Vec<(Message, Need)> {
        let mut messages = Vec::new();
        let (mut from, mut bytes) = (0, 0);
        let mut put = |steps: &[Envelope]| {
            if !steps.is_empty() {
                match messages::steps(&self.topology, &steps.iter().collect::<Vec<_>>()) {
                    Ok(message) => messages.push((message, Need::Work)),
                    Err(failure) => warn!(%failure, "steps cannot be written down"),
                }
            }
        };
        for (at, step) in steps.iter().enumerate() {
            let more = step.input.get().len();
            if at - from >= MESSAGE_STEPS || at > from && bytes + more > MESSAGE_BYTES {
                put(steps.get(from..at).unwrap_or_default());
                (from, bytes) = (at, 0);
            }
            bytes += more;
        }
        put(steps.get(from..).unwrap_or_default());
        messages
    }

    /// The records first, so that whoever takes a step up from now on finds there that it is not wanted.
    async fn stop(&self, ids: Vec<TaskId>) {
        for ids in ids.chunks(TASKS) {
            if let Err(failure) = self.store.cancel(ids.to_vec()).await {
                debug!(%failure, "steps are stopped without a word in their records");
                self.metrics.store_failed("cancel");
            }
            let ask = Ask::Cancel { ids: ids.to_vec() };
            // What they answer is told by the steps' results.
            let others = (0..self.shards).filter(|shard| *shard != self.shard);
            let nobody = Reply { to: self.topology.replies("nobody").into(), correlation_id: None, array: false };
            let question = Question::new(ask.clone());
            let questions = others.map(|shard| messages::question(&self.topology, shard, &question, &nobody));
            let questions: Vec<Message> = questions.filter_map(Result::ok).collect();
            if !questions.is_empty() {
                for answer in self.broker.publish(questions).await {
                    if let Err(failure) = answer {
                        debug!(%failure, "a scheduler could not be asked to stop steps");
                    }
                }
            }
            let (answer, _) = oneshot::channel();
            let _closing = self.events.send(Event::Asked(Asked { ask, answer })).await;
        }
    }

    fn finish(&self, board: &mut Board, id: WorkflowId) {
        let Some(run) = board.runs.remove(&id) else { return };
        let state = run.machine.state();
        self.metrics.workflows_active(-1);
        self.metrics.workflow_finished(state);
        debug!(workflow.id = %id.0, state = state.as_str(), "a workflow has ended");
        board.finishing.insert(id);
        if run.receipt.is_none() {
            if board.on_their_way.len() >= ON_THEIR_WAY {
                board.on_their_way.pop_front();
            }
            board.on_their_way.push_back((id, run.order.replies().cloned().collect()));
        }
        let write = match run.write(state) {
            Ok(write) => write,
            Err(failure) => return warn!(%failure, "how a workflow ended cannot be written down"),
        };
        let teller = Teller { broker: self.broker.clone(), store: self.store.clone(), closing: self.closing.clone() };
        board.telling.spawn(teller.finish(write, run.order, run.ending, run.receipt));
    }

    /// To who published what needs no run, or no more.
    async fn tell_again(&self, order: &WorkflowOrder, record: Bytes, receipt: Option<Receipt>) {
        let told =
            order.replies().map(|reply| (messages::workflow_result(reply, order.id, record.clone()), Need::Reply));
        if publish_surely(&*self.broker, told.collect(), &self.closing).await.is_ok() {
            broker::settle(receipt.into_iter().collect(), Verdict::Ack).await;
        }
    }

    /// Results that did not come: their messages may have been lost with a queue.
    async fn look_up(&self, board: &mut Board, touched: &mut BTreeSet<WorkflowId>) {
        if board.looked.elapsed() < LOOK_EVERY {
            return;
        }
        board.looked = Instant::now();
        for (id, run) in &mut board.runs {
            let ids = run.outstanding(LOOK_AT);
            let Ok(records) = self.store.get(ids).await else { return };
            for record in records.into_iter().flatten().filter(|record| record.state.is_terminal()) {
                if run.handle_result(record) {
                    touched.insert(*id);
                }
            }
        }
    }

    fn expire(&self, board: &mut Board, touched: &mut BTreeSet<WorkflowId>) {
        let now = Timestamp::now();
        for (id, run) in &mut board.runs {
            if run.order.deadline.is_some_and(|deadline| deadline <= now) {
                run.machine.expire();
                touched.insert(*id);
            }
        }
    }

    /// How far each has come.
    fn write(&self, board: &mut Board) {
        for (id, run) in &mut board.runs {
            if !run.is_changed || run.is_written_now || run.written.elapsed() < run.write_every {
                continue;
            }
            let started = Instant::now();
            let Ok(write) = run.write(WorkflowState::Running) else { continue };
            (run.is_changed, run.is_written_now) = (false, true);
            let (store, id, metrics) = (self.store.clone(), *id, self.metrics.clone());
            board.writing.spawn(async move {
                if let Err(failure) = store.write_workflow(write).await {
                    debug!(%failure, "how far a workflow has come is not written down");
                    metrics.store_failed("write_workflow");
                }
                (id, started.elapsed())
            });
        }
    }

    /// What has been held for so long that the broker would lose patience.
    async fn send_round(&self, board: &mut Board) {
        let mut copies: Vec<(Message, Need)> = Vec::new();
        let mut receipts = Vec::new();
        for run in board.runs.values_mut().filter(|run| run.since.elapsed() >= self.patience) {
            let Ok(message) = messages::workflow(&self.topology, self.shard, &run.order) else { continue };
            if let Some(receipt) = run.receipt.take() {
                copies.push((message, Need::Work));
                receipts.push(receipt);
            }
        }
        while board.waiting.front().is_some_and(|(_, since)| since.elapsed() >= self.patience) {
            let Some((delivery, _)) = board.waiting.pop_front() else { break };
            let mut message = Message::to_queue(self.topology.workflows(self.shard), delivery.body);
            message.properties.message_id = delivery.properties.message_id;
            copies.push((message, Need::Work));
            receipts.extend(Receipt::split(delivery.tag, &board.workflows, 1));
        }
        if copies.is_empty() {
            return;
        }
        info!(workflows = copies.len(), "held for long: sent round through the broker");
        if publish_surely(&*self.broker, copies, &self.closing).await.is_ok() {
            self.metrics.handed_back(receipts.len());
            broker::settle(receipts, Verdict::Ack).await;
        }
    }

    async fn bury(&self, delivery: Delivery, receipt: Receipt, why: &wire::Unreadable) {
        warn!(code = why.code(), %why, "a workflow in the queue of a shard cannot be read");
        self.metrics.dead_lettered(why.code());
        let (origin, id) = (Origin::Workflows(self.shard), delivery.properties.message_id.as_ref());
        let dead = Letter::of_order(origin, id, why, delivery.body).message(&self.topology);
        if publish_surely(&*self.broker, vec![(dead, Need::Work)], &self.closing).await.is_ok() {
            broker::settle(vec![receipt], Verdict::Ack).await;
        }
    }
}
