//! Carries out deployment tasks: pins a version of a model, rolls it out, tries it in the shadow, retires it.
//!
//! What they come to is one value in the store, written before anything goes by it. A deployment that a scheduler did not live to
//! finish comes again with its delivery, and finds what it has done. One shard carries them all out; the others read the value.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde_json::json;
use serde_json::value::RawValue;
use taskyard_shared::deployment::{Canary, Deployed, Order, Registration, Traffic, base};
use taskyard_shared::load::{LoadReport, LoadState, ModelSpec};
use taskyard_shared::store::{Store, StoreError};
use taskyard_shared::{State, Target, TaskId, Timestamp};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::{debug, info, warn};

use crate::core::Core;
use crate::finish::Finished;
use crate::held::Held;

/// A deployment that says nothing of its time may take so long.
const USUAL: Duration = Duration::from_secs(600);
/// None takes longer: its delivery is not acked meanwhile, and the broker has 30 minutes of patience.
const LONGEST: Duration = Duration::from_secs(1200);
/// Models that stand in no settings; all workers read them over and over.
const REGISTERED_MOST: usize = 1_000;
/// Deployments under way at once.
const AT_ONCE: usize = 256;

/// One that is being carried out.
struct Running {
    task: Held,
    order: Order,
    /// The model that the task names.
    spec: Arc<ModelSpec>,
    /// The model that it is about: another where one is registered.
    about: String,
    until: Instant,
    /// How the model was pinned before.
    pin_before: Option<u32>,
    has_begun: bool,
    /// Workers that could not load it, and why.
    failed: BTreeMap<String, String>,
    /// What came of it, once what it changed is written.
    end: Option<End>,
}

enum End {
    Done(Box<RawValue>),
    Failed(&'static str, String),
}

#[derive(Default)]
pub(crate) struct Deploying {
    pub deployed: Deployed,
    running: BTreeMap<TaskId, Running>,
    /// What is in force is not all in the store.
    is_dirty: bool,
    writing: JoinSet<Result<(), StoreError>>,
}

impl Deploying {
    pub fn new(deployed: Deployed) -> Self {
        Self { deployed, ..Self::default() }
    }

    pub fn carries_out(&self, id: TaskId) -> bool {
        self.running.contains_key(&id)
    }

    pub fn change(&mut self, change: impl FnOnce(&mut Deployed)) {
        let before = self.deployed.clone();
        change(&mut self.deployed);
        self.is_dirty |= self.deployed != before;
    }

    /// What it changed so far; but for what is retired, which stays so.
    fn undo(&mut self, one: &Running) {
        if !one.has_begun {
            return;
        }
        self.set_pin(&one.about, one.pin_before);
        if let Order::Register(_) = one.order {
            self.change(|deployed| {
                deployed.registered.remove(&one.about);
                // Workers have announced it: nobody is to get it any more.
                deployed.retired.insert(one.about.clone());
            });
        }
    }

    fn set_pin(&mut self, model: &str, pin: Option<u32>) {
        self.change(|deployed| match pin {
            Some(workers) => deployed.pins.extend([(model.to_owned(), workers)]),
            None => deployed.pins.retain(|pinned, _| pinned != model),
        });
    }
}

impl Core {
    /// What another scheduler made of the deployments. Whoever carries them out knows better, but for the store's being
    /// emptied.
    pub fn set_deployed(&mut self, deployed: Deployed) {
        if self.shard.number != 0 {
            self.deploying.deployed = deployed;
        } else if deployed != self.deploying.deployed && self.deploying.writing.is_empty() {
            self.deploying.is_dirty = true;
        }
    }

    /// Takes a deployment task in: it runs here, beside the planner.
    pub fn deploy(&mut self, task: Held, spec: Arc<ModelSpec>) {
        let id = task.envelope.id;
        if self.shard.number != 0 {
            // The first shard does that for all.
            if let Some(receipt) = task.receipt {
                self.acking.spawn(self.finisher.clone().send_round(0, vec![(task.envelope, receipt)]));
            }
            return;
        }
        if self.deploying.running.contains_key(&id) {
            return self.ack(task.receipt.into_iter().collect());
        }
        let order = match Order::read(&task.envelope.input) {
            Ok(order) => order,
            Err(problem) => {
                return self.refuse(task, State::Rejected, "invalid_deployment", problem);
            }
        };
        let problem = match (&task.envelope.target, task.envelope.extras.not_before) {
            (Target::Capability(_), _) => Some("a deployment names its model, not a capability"),
            (_, Some(_)) => Some("a deployment begins at once: it has no earliest start"),
            _ => None,
        };
        if let Some(problem) = problem {
            return self.refuse(task, State::Rejected, "invalid_deployment", problem.to_owned());
        }
        if self.deploying.running.len() >= AT_ONCE {
            let problem = format!("{AT_ONCE} deployments are under way");
            return self.refuse(task, State::Rejected, "overloaded", problem);
        }
        info!(task.id = %id.0, task.model = %spec.name, action = order.as_str(), "a deployment begins");
        self.metrics.accepted(task.envelope.kind, &spec.name);
        let deadline_ms = task.envelope.deadline.map_or(f64::MAX, |at| at.ms_since(Timestamp::now()).max(0.0));
        let limit = task.envelope.timeout_ms.map_or(USUAL, |ms| Duration::from_millis(ms.get())).min(LONGEST);
        let limit = limit.min(Duration::try_from_secs_f64(deadline_ms / 1e3).unwrap_or(limit));
        let store = self.store.clone();
        let mark = vec![(id, spec.name.clone())];
        self.finishing.spawn(async move {
            if let Err(failure) = store.dispatched(mark).await {
                debug!(%failure, "the state was not written: it shows as queued until it ends");
            }
        });
        let about = match &order {
            Order::Register(variant) => variant.name.clone(),
            _ => spec.name.clone(),
        };
        let running = Running {
            task: Held { model: spec.name.clone(), ..task },
            order,
            until: Instant::now() + limit,
            pin_before: self.deploying.deployed.pins.get(&about).copied(),
            about,
            spec,
            has_begun: false,
            failed: BTreeMap::new(),
            end: None,
        };
        self.deploying.running.insert(id, running);
    }

    /// Goes on with all that are under way, by what workers say.
    pub fn go_on_deploying(&mut self, loads: &[LoadReport]) {
        let mut deploying = std::mem::take(&mut self.deploying);
        while let Some(written) = deploying.writing.try_join_next() {
            if !matches!(written, Ok(Ok(()))) {
                warn!("the deployments were not written: again");
                self.metrics.store_failed("put");
                deploying.is_dirty = true;
            }
        }
        let mut running = std::mem::take(&mut deploying.running);
        for one in running.values_mut().filter(|one| one.end.is_none()) {
            one.end = self.step(&mut deploying, one, loads);
            if matches!(one.end, Some(End::Failed(..))) {
                deploying.undo(one);
            }
        }
        if deploying.is_dirty && deploying.writing.is_empty() {
            deploying.is_dirty = false;
            deploying.writing.spawn(write(self.store.clone(), deploying.deployed.clone()));
        }
        // What it changed is in force for good before anybody is told.
        let is_written = !deploying.is_dirty && deploying.writing.is_empty();
        if is_written {
            for (_, one) in running.extract_if(.., |_, one| one.end.is_some()) {
                self.tell_deployed(one);
            }
        }
        deploying.running = running;
        self.deploying = deploying;
    }

    fn step(&self, deploying: &mut Deploying, one: &mut Running, loads: &[LoadReport]) -> Option<End> {
        let name = one.about.clone();
        if one.until <= Instant::now() {
            let message = match &one.order {
                Order::Register(_) if one.failed.is_empty() => {
                    format!("no worker that has {} has loaded it: do they have artifacts.url?", one.spec.name)
                }
                Order::Retire {} => "what waits for it is not done yet, or it is still loaded".to_owned(),
                _ => "it was not loaded in time".to_owned(),
            };
            return Some(End::Failed("timeout", message));
        }
        match &one.order {
            Order::Register(variant) => {
                let registration = Registration { like: one.spec.name.clone(), variant: (**variant).clone() };
                if !one.has_begun {
                    // Its delivery may have come again: then it is there.
                    let is_same = deploying.deployed.registered.get(&name) == Some(&registration);
                    let is_taken = self.models.contains_key(&name) && !deploying.deployed.retired.contains(&name);
                    if !is_same && (is_taken || deploying.deployed.registered.contains_key(&name)) {
                        let message = format!("there is a model {name}: a model that is changed is another version");
                        return Some(End::Failed("conflict", message));
                    }
                    if !is_same && deploying.deployed.registered.len() >= REGISTERED_MOST {
                        let message = format!("{REGISTERED_MOST} models are registered: retire some first");
                        return Some(End::Failed("too_many_models", message));
                    }
                    one.has_begun = true;
                    // It is loaded once, also where its place is still to be found.
                    deploying.set_pin(&name, Some(one.pin_before.unwrap_or(1)));
                    deploying.change(|deployed| {
                        deployed.retired.retain(|retired| *retired != name);
                        deployed.registered.insert(name.clone(), registration);
                    });
                }
                let (able, loaded) = one.look(loads);
                if !loaded.is_empty() && self.models.contains_key(&name) {
                    deploying.set_pin(&name, one.pin_before);
                    return Some(done(one, &loaded));
                }
                one.load_failed(able)
            }
            Order::Unpin {} => {
                deploying.set_pin(&name, None);
                Some(done(one, &[]))
            }
            Order::Shadow { share, .. } if *share <= 0.0 => {
                deploying.change(|deployed| deployed.mirrors.retain(|mirror, _| *mirror != name));
                Some(done(one, &[]))
            }
            Order::Pin { workers } | Order::RollOut { workers, .. } | Order::Shadow { workers, .. } => {
                let workers = *workers;
                if let Order::Shadow { .. } = one.order
                    && let Some(problem) = self.cannot_mirror(deploying, &name)
                {
                    return Some(End::Failed("invalid_deployment", problem));
                }
                if !std::mem::replace(&mut one.has_begun, true) {
                    deploying.set_pin(&name, Some(workers));
                    deploying.change(|deployed| deployed.retired.retain(|retired| *retired != name));
                }
                let (able, loaded) = one.look(loads);
                if !loaded.is_empty() && loaded.len() >= able.min(workers as usize) {
                    if let &Order::RollOut { share, .. } = &one.order
                        && let Err(problem) = self.shift(deploying, &name, share)
                    {
                        return Some(End::Failed("invalid_deployment", problem));
                    }
                    if let &Order::Shadow { share, .. } = &one.order {
                        self.set_mirror(deploying, &name, share);
                    }
                    return Some(done(one, &loaded));
                }
                one.load_failed(able)
            }
            Order::Retire {} => {
                if !std::mem::replace(&mut one.has_begun, true) {
                    if self.default_of(&deploying.deployed, base(&name)).as_deref() == Some(&name)
                        || deploying.deployed.has_traffic(&name)
                    {
                        one.has_begun = false;
                        let model = base(&name);
                        let message = format!("tasks that name {model} go to it: roll out another version first");
                        return Some(End::Failed("in_use", message));
                    }
                    deploying.set_pin(&name, None);
                    deploying.change(|deployed| {
                        deployed.mirrors.remove(&name);
                        deployed.retired.extend([name.clone()]);
                    });
                    return None;
                }
                let mut of = loads.iter().filter_map(|report| Some((report, report.models.get(&name)?)));
                let is_there = of.any(|(report, load)| {
                    let is_held = matches!(load.state, LoadState::Loaded | LoadState::Loading);
                    load.held > 0 || report.has_budget() && is_held
                });
                (!is_there && !self.is_wanted(&name)).then(|| {
                    deploying.change(|deployed| drop(deployed.registered.remove(&name)));
                    done(one, &[])
                })
            }
        }
    }

    /// A version gets this share of the tasks that name its model alone.
    fn shift(&self, deploying: &mut Deploying, name: &str, share: f64) -> Result<(), String> {
        let model = base(name).to_owned();
        let before = self.default_of(&deploying.deployed, &model);
        let traffic = match before {
            Some(before) if share < 1.0 && before != name => {
                Traffic { to: before, canary: Some(Canary { to: name.to_owned(), share }) }
            }
            None if share < 1.0 => return Err(format!("nothing else gets the tasks of {model}: share must be 1")),
            _ => Traffic { to: name.to_owned(), canary: None },
        };
        info!(task.model = %name, share, "gets its share of the tasks");
        deploying.change(|deployed| {
            deployed.mirrors.remove(name);
            deployed.traffic.extend([(model, traffic)]);
        });
        Ok(())
    }

    /// Who gets the tasks that name a model without a version, canaries aside.
    pub(crate) fn default_of(&self, deployed: &Deployed, model: &str) -> Option<String> {
        if let Some(traffic) = deployed.traffic.get(model) {
            return Some(traffic.to.clone());
        }
        if self.models.contains_key(model) && !deployed.retired.contains(model) {
            return Some(model.to_owned());
        }
        let mut versions = self.models.keys().filter(|name| base(name) == model && !deployed.retired.contains(*name));
        match (versions.next(), versions.next()) {
            (Some(only), None) => Some(only.clone()),
            _ => None,
        }
    }

    /// Whether tasks of it wait here, or are with workers.
    pub(crate) fn is_wanted(&self, model: &str) -> bool {
        self.planner.backlog(model) > 0 || self.planner.outstanding(model) > 0
    }

    /// Ends a deployment that is under way: what it changed so far is undone, but for what is retired.
    pub(crate) fn break_off_deployment(&mut self, id: TaskId) -> Option<Held> {
        let one = self.deploying.running.remove(&id)?;
        self.deploying.undo(&one);
        Some(one.task)
    }

    fn tell_deployed(&mut self, one: Running) {
        let Running { task, order, end, .. } = one;
        let action = order.as_str();
        match end {
            Some(End::Done(output)) => {
                info!(task.id = %task.envelope.id.0, action, "a deployment is done");
                self.finished.push(Finished::succeeded(task, output));
            }
            Some(End::Failed(code, message)) => {
                warn!(task.id = %task.envelope.id.0, action, code, message, "a deployment failed");
                self.refuse(task, State::Failed, code, message);
            }
            None => {}
        }
    }
}

impl Running {
    /// Once none of those that could hold it could load it.
    fn load_failed(&self, able: usize) -> Option<End> {
        let reasons: Vec<String> = self.failed.iter().map(|(worker, reason)| format!("{worker}: {reason}")).collect();
        (able > 0 && reasons.len() >= able).then(|| End::Failed("load_failed", reasons.join("; ")))
    }

    /// How many workers could hold it, and which do. Takes note of those that cannot load it.
    fn look<'a>(&mut self, loads: &'a [LoadReport]) -> (usize, Vec<&'a str>) {
        let name = &self.about;
        let able = loads.iter().filter(|report| !report.draining && report.models.contains_key(name));
        let (mut count, mut loaded) = (0, Vec::new());
        for report in able {
            count += 1;
            match report.models.get(name) {
                Some(load) if load.state == LoadState::Loaded => loaded.push(report.worker.as_str()),
                Some(load) if load.state == LoadState::Failed => {
                    let reason = load.reason.clone().unwrap_or_else(|| "it cannot be loaded".to_owned());
                    self.failed.insert(report.worker.clone(), reason);
                }
                _ => {}
            }
        }
        (count, loaded)
    }
}

fn done(one: &Running, workers: &[&str]) -> End {
    let output = match &one.order {
        Order::Register(_) => json!({"action": one.order.as_str(), "model": one.about, "workers": workers}),
        Order::RollOut { share, .. } | Order::Shadow { share, .. } => {
            json!({"action": one.order.as_str(), "model": one.spec.full_name(), "workers": workers, "share": share})
        }
        Order::Pin { .. } => {
            json!({"action": one.order.as_str(), "model": one.spec.full_name(), "workers": workers})
        }
        Order::Unpin {} | Order::Retire {} => json!({"action": one.order.as_str(), "model": one.spec.full_name()}),
    };
    match serde_json::value::to_raw_value(&output) {
        Ok(output) => End::Done(output),
        Err(failure) => End::Failed("unwritable", failure.to_string()),
    }
}

async fn write(store: Arc<dyn Store>, deployed: Deployed) -> Result<(), StoreError> {
    match serde_json::to_vec(&deployed) {
        Ok(written) => store.put(Deployed::KEY, written.into()).await,
        // Strings and numbers can always be written.
        Err(_) => Ok(()),
    }
}

/// What deployments came to so far: nothing when there were none.
pub(crate) async fn read(store: &dyn Store) -> Result<Deployed, StoreError> {
    let Some(bytes) = store.fetch(Deployed::KEY).await? else { return Ok(Deployed::default()) };
    Ok(Deployed::read(&bytes).unwrap_or_else(|failure| {
        warn!(%failure, "the deployments cannot be read: models get their tasks as if there were none");
        Deployed::default()
    }))
}
