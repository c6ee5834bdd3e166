//! Shadow traffic: a version that is tried out runs a share of its model's tasks a second time. Nothing to do with `shadow`, which compares
//! orders.
//!
//! A copy is made when its task is dispatched, kept in memory alone, and given to the planner once the task has succeeded and the version
//! has nothing else to do. So it is behind everything, and what goes wrong with it is its own affair: it may be lost at any time. When it
//! has ended, both records are read and compared.

mod compare;
mod tally;

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use taskyard_shared::deployment::Deployed;
use taskyard_shared::load::{Completion, LoadReport};
use taskyard_shared::mirror::{Differing, Likeness, METADATA, TENANT, Tally};
use taskyard_shared::store::{Store, StoreError};
use taskyard_shared::{Envelope, Extra, Kind, Priority, State, Target, TaskId, Timestamp, envelope};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tracing::debug;

use crate::core::Core;
use crate::held::Held;
use crate::planner::TenantLimits;
use compare::judge;
pub(crate) use tally::recall;

/// Copies of a version that a shard has at once, and bytes of their inputs.
const COPIES_MOST: usize = 32;
const BYTES_MOST: usize = 16 << 20;
/// A task that is neither here nor with workers, and of whose end nothing was heard, is waited for so long.
const UNHEARD_FOR: Duration = Duration::from_secs(60);

/// A version in the shadow, from when it was put there until it is taken out: put there again it is another one.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Trial {
    version: Arc<str>,
    since: Timestamp,
}

impl Trial {
    fn goes_on(&self, deployed: &Deployed) -> bool {
        deployed.mirrors.get(&*self.version).is_some_and(|mirror| mirror.since == self.since)
    }
}

/// Waits for the end of its task.
struct Awaiting {
    trial: Trial,
    /// Nothing when there is no room for a copy: its task is counted when it ends.
    envelope: Option<Box<Envelope>>,
    unheard_since: Option<Instant>,
}

struct Copy {
    trial: Trial,
    task: TaskId,
    envelope: Box<Envelope>,
}

/// With the planner, or dispatched.
struct Running {
    trial: Trial,
    task: TaskId,
    bytes: usize,
    /// A second ago it was nowhere.
    is_missed: bool,
}

/// A copy that has ended, beside its task.
pub(crate) struct Looked {
    trial: Trial,
    ids: Differing,
    bytes: usize,
    likeness: Likeness,
    /// What both took.
    ms: Option<(f64, f64)>,
}

/// Copies of a version that are kept, and the bytes of their inputs.
#[derive(Clone, Copy, Default)]
struct Kept {
    copies: usize,
    bytes: usize,
}

#[derive(Default)]
pub(crate) struct Mirroring {
    /// By their tasks, all of which are with workers.
    awaiting: HashMap<TaskId, Vec<Awaiting>>,
    /// Their tasks have succeeded.
    ready: VecDeque<Copy>,
    running: HashMap<TaskId, Running>,
    kept: BTreeMap<Trial, Kept>,
    /// The models that share slots with a version.
    beside: BTreeMap<String, BTreeSet<String>>,
    pub looking: JoinSet<Looked>,
    /// The planner knows that they give way to everybody.
    gives_way: bool,
    tallies: BTreeMap<String, Tally>,
    /// Of what is counted not all is in the store.
    is_dirty: bool,
    writing: JoinSet<Result<(), StoreError>>,
}

impl Mirroring {
    pub fn new(tallies: BTreeMap<String, Tally>) -> Self {
        Self { tallies, ..Self::default() }
    }

    /// Whether there is room for one more copy.
    fn keep(&mut self, trial: &Trial, bytes: usize) -> bool {
        let kept = self.kept.entry(trial.clone()).or_default();
        let has_room = kept.copies < COPIES_MOST && kept.bytes + bytes <= BYTES_MOST;
        if has_room {
            kept.copies += 1;
            kept.bytes += bytes;
        }
        has_room
    }

    fn let_go(&mut self, trial: &Trial, bytes: usize) {
        if let Some(kept) = self.kept.get_mut(trial) {
            kept.copies = kept.copies.saturating_sub(1);
            kept.bytes = kept.bytes.saturating_sub(bytes);
            if kept.copies == 0 {
                self.kept.remove(trial);
            }
        }
    }

    /// Nobody waits for this copy's task any more.
    fn give_up(&mut self, awaiting: &Awaiting) {
        if let Some(envelope) = &awaiting.envelope {
            self.let_go(&awaiting.trial, envelope.input.get().len());
        }
    }
}

impl Core {
    /// A task is about to be dispatched: it is copied, if it is one of a version's share.
    pub fn mirror(&mut self, task: &Held) {
        let (envelope, deployed) = (&*task.envelope, &self.deploying.deployed);
        if deployed.mirrors.is_empty() || self.mirroring.awaiting.contains_key(&envelope.id) {
            return;
        }
        let Target::Model(model) = &envelope.target else { return };
        let leaves_no_choice = envelope.extras.alternatives.is_empty() && envelope.extras.min_quality.is_none();
        let may_run_twice = !matches!(envelope.kind, Kind::Training | Kind::Deployment);
        if !(leaves_no_choice && may_run_twice) {
            return;
        }
        let trials = deployed.mirrored(model, &task.model, envelope.id);
        let trials: Vec<_> = trials.map(|(version, since)| Trial { version: version.into(), since }).collect();
        for trial in trials {
            let copy = self.copy_of(envelope, &trial);
            let copies = self.mirroring.awaiting.entry(envelope.id).or_default();
            copies.push(Awaiting { trial, envelope: copy, unheard_since: None });
        }
    }

    /// If the version has a worker, and room.
    fn copy_of(&mut self, original: &Envelope, trial: &Trial) -> Option<Box<Envelope>> {
        let version = &trial.version;
        let spec = self.models.get(&**version).filter(|_| self.offers.slots(version) > 0)?;
        let name = spec.full_name();
        self.mirroring.keep(trial, original.input.get().len()).then(|| {
            let extra = Extra {
                cost: original.extras.cost,
                max_attempts: Some(1),
                metadata: BTreeMap::from([(METADATA.to_owned(), original.id.0.to_string())]),
                mirrors: Some(original.id),
                ..Extra::default()
            };
            Box::new(Envelope {
                v: envelope::VERSION,
                id: TaskId::new(),
                target: Target::Model(name.into()),
                chosen: Some((**version).into()),
                kind: original.kind,
                tenant: TENANT.into(),
                priority: Priority::LOWEST,
                deadline: None,
                timeout_ms: original.timeout_ms,
                accepted: original.accepted,
                dispatched: None,
                attempts: 0,
                reply: None,
                shard: self.shard.number,
                extras: extra.into(),
                input: original.input.clone(),
            })
        })
    }

    /// An attempt has ended. Whether it was at a copy.
    pub fn mirror_completed(&mut self, done: &Completion) -> bool {
        if let Some(copy) = self.mirroring.running.remove(&done.id) {
            if done.state.is_terminal() {
                self.look_at(done.id, copy);
            } else {
                // Its worker gave it back, and it is not tried again.
                self.mirroring.let_go(&copy.trial, copy.bytes);
                self.count_mirrored(&copy.trial, Likeness::Skipped);
            }
            return true;
        }
        if !done.state.is_terminal() && self.shard.of == 1 {
            return false;
        }
        for awaiting in self.mirroring.awaiting.remove(&done.id).unwrap_or_default() {
            match awaiting.envelope {
                // Whichever shard dispatches it next copies it anew.
                _ if !done.state.is_terminal() => self.mirroring.give_up(&awaiting),
                None => self.count_mirrored(&awaiting.trial, Likeness::Skipped),
                Some(envelope) if done.state == State::Succeeded => {
                    self.mirroring.ready.push_back(Copy { trial: awaiting.trial, task: done.id, envelope });
                }
                Some(_) => {
                    self.mirroring.give_up(&awaiting);
                    self.count_mirrored(&awaiting.trial, Likeness::Unknown);
                }
            }
        }
        false
    }

    /// Gives the planner the copies that nothing else is to come before.
    pub fn run_copies(&mut self) {
        if self.mirroring.ready.is_empty() {
            return;
        }
        let mut free: BTreeMap<Arc<str>, usize> = BTreeMap::new();
        let copies = std::mem::take(&mut self.mirroring.ready);
        for copy in copies {
            let version = &copy.trial.version;
            let free = free.entry(version.clone()).or_insert_with(|| self.free_for_copies(version));
            match free.checked_sub(1) {
                Some(left) => {
                    *free = left;
                    self.run_copy(copy);
                }
                None => self.mirroring.ready.push_back(copy),
            }
        }
    }

    /// Slots of the version that have nothing to do, if nothing waits that could have them.
    fn free_for_copies(&self, version: &str) -> usize {
        let waits = |model: &str| self.planner.backlog(model) > 0;
        // What was sent ahead of their slots waits, too.
        let is_ahead = |model: &str| self.planner.outstanding(model) > self.offers.calls(model, self.shard);
        let mut beside = self.mirroring.beside.get(version).into_iter().flatten();
        if self.offers.slots(version) == 0 || waits(version) || beside.any(|model| waits(model) || is_ahead(model)) {
            return 0;
        }
        self.offers.calls(version, self.shard).max(1).saturating_sub(self.planner.outstanding(version))
    }

    fn run_copy(&mut self, Copy { trial, task, mut envelope }: Copy) {
        if !std::mem::replace(&mut self.mirroring.gives_way, true) {
            self.planner.handle_tenant(TENANT, TenantLimits { weight: 0.0, ..TenantLimits::default() });
        }
        envelope.accepted = Timestamp::now();
        let (id, bytes) = (envelope.id, envelope.input.get().len());
        let held = Held {
            model: trial.version.to_string(),
            envelope,
            receipt: None,
            since: Instant::now(),
            is_known: false,
            page: None,
            expected: None,
        };
        match self.planner.handle_arrival(self.arrival(&held), self.clock.now_us()) {
            Ok(()) => {
                self.held.insert(id, held);
                self.mirroring.running.insert(id, Running { trial, task, bytes, is_missed: false });
            }
            // So much waits that it gives way.
            Err(_) => {
                self.mirroring.let_go(&trial, bytes);
                self.count_mirrored(&trial, Likeness::Skipped);
            }
        }
    }

    /// A copy that the planner gives up, or that cannot be sent.
    pub fn skip_copy(&mut self, id: TaskId) {
        if let Some(copy) = self.mirroring.running.remove(&id) {
            self.mirroring.let_go(&copy.trial, copy.bytes);
            self.count_mirrored(&copy.trial, Likeness::Skipped);
        }
    }

    fn look_at(&mut self, copy: TaskId, Running { trial, task, bytes, .. }: Running) {
        let ids = Differing { task, copy };
        self.mirroring.looking.spawn(look(self.store.clone(), trial, ids, bytes));
    }

    /// A copy has been compared.
    pub fn note_looked(&mut self, Looked { trial, ids, bytes, likeness, ms }: Looked) {
        self.mirroring.let_go(&trial, bytes);
        self.count_mirrored(&trial, likeness);
        if likeness == Likeness::Different {
            debug!(task.id = %ids.task.0, copy.id = %ids.copy.0, task.model = &*trial.version, "answers differently");
        }
        if let Some((task_ms, copy_ms)) = ms {
            self.note_compared(&trial, ids, likeness, (task_ms, copy_ms));
        }
    }

    /// By what workers say: copies wait for whatever shares slots with them.
    pub fn note_beside(&mut self, loads: &[LoadReport]) {
        let beside = &mut self.mirroring.beside;
        beside.clear();
        for version in self.deploying.deployed.mirrors.keys() {
            let has = |report: &&LoadReport| {
                report.slots > 0 && report.models.get(version).is_some_and(|load| load.slots > 0)
            };
            for report in loads.iter().filter(has) {
                beside.entry(version.clone()).or_default().extend(report.models.keys().cloned());
            }
        }
    }

    /// Once a second.
    pub fn look_after_copies(&mut self) {
        self.end_mirrors();
        let mirroring = &mut self.mirroring;
        let mut given_up = Vec::new();
        let is_here = |id: &TaskId| self.outstanding.contains_key(id) || self.held.contains_key(id);
        mirroring.awaiting.retain(|task, copies| {
            let is_here = is_here(task);
            copies.retain_mut(|copy| {
                copy.unheard_since = copy.unheard_since.filter(|_| !is_here);
                let is_over = !is_here && copy.unheard_since.get_or_insert_with(Instant::now).elapsed() >= UNHEARD_FOR;
                if is_over {
                    let (trial, envelope) = (copy.trial.clone(), copy.envelope.take());
                    given_up.push(Awaiting { trial, envelope, unheard_since: None });
                }
                !is_over
            });
            !copies.is_empty()
        });
        let mut missed = Vec::new();
        for (id, copy) in &mut mirroring.running {
            let is_missed = !is_here(id);
            if std::mem::replace(&mut copy.is_missed, is_missed) && is_missed {
                missed.push(*id);
            }
        }
        for copy in given_up {
            self.mirroring.give_up(&copy);
            let likeness = if copy.envelope.is_some() { Likeness::Unknown } else { Likeness::Skipped };
            self.count_mirrored(&copy.trial, likeness);
        }
        // Their ends were not heard of, but may be in the store.
        for id in missed {
            if let Some(copy) = self.mirroring.running.remove(&id) {
                self.look_at(id, copy);
            }
        }
        self.keep_tallies();
    }

    /// What is here of versions that are tried out no more goes, but for what workers run.
    fn end_mirrors(&mut self) {
        let Self { mirroring, deploying, .. } = self;
        let is_over = |trial: &Trial| !trial.goes_on(&deploying.deployed);
        if !mirroring.kept.keys().any(is_over) {
            return;
        }
        let mut given_up = Vec::new();
        mirroring.awaiting.retain(|_, copies| {
            given_up.extend(copies.extract_if(.., |copy| is_over(&copy.trial)));
            !copies.is_empty()
        });
        given_up.iter().for_each(|copy| mirroring.give_up(copy));
        let ready = std::mem::take(&mut mirroring.ready).into_iter();
        let (over, going_on): (VecDeque<Copy>, VecDeque<Copy>) = ready.partition(|copy| is_over(&copy.trial));
        mirroring.ready = going_on;
        for Copy { trial, envelope, .. } in over {
            mirroring.let_go(&trial, envelope.input.get().len());
        }
        let running = mirroring.running.iter().filter(|(_, copy)| is_over(&copy.trial));
        let running: Vec<TaskId> = running.map(|(id, _)| *id).collect();
        for id in running {
            if self.planner.handle_cancel(id) {
                self.held.remove(&id);
                self.skip_copy(id);
            }
        }
    }
}

/// Reads what both came to.
async fn look(store: Arc<dyn Store>, trial: Trial, ids: Differing, bytes: usize) -> Looked {
    let records = store.get(vec![ids.task, ids.copy]).await;
    let judged = match records.map(<[_; 2]>::try_from) {
        // Outputs may be large.
        Ok(Ok([task, copy])) => tokio::task::spawn_blocking(|| judge(task, copy)).await.ok(),
        Ok(Err(_)) => None,
        Err(failure) => {
            debug!(%failure, task.id = %ids.task.0, "a task cannot be compared with its copy");
            None
        }
    };
    let (likeness, ms) = judged.unwrap_or((Likeness::Unknown, None));
    Looked { trial, ids, bytes, likeness, ms }
}
