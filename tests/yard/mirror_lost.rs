//! Shadow traffic: workers that die with a copy in hand.

use taskyard_shared::store::{Filter, Leased};

use super::control::Api;
use super::mirror::{Odd, counted, counts, shadows, shown, versions};
use super::*;

/// No lease of this length ends here.
const LONG_MS: u64 = 60_000;

impl Yard {
    /// A worker of one version, with leases of this length. Answers what kills it.
    fn of_version(&self, id: &str, lease_ms: u64, spec: ModelSpec, handler: Arc<dyn Handler>) -> CancellationToken {
        let mut settings = self.settings.worker.clone();
        (settings.id, settings.lease_ms) = (id.to_owned(), lease_ms);
        let (broker, store) = (self.broker.clone(), self.store.clone());
        let worker = Worker::new(broker, store, self.topology.clone(), settings, &self.registry).unwrap();
        let kill = CancellationToken::new();
        tokio::spawn(worker.model(spec, handler).run(CancellationToken::new(), kill.clone()));
        kill
    }

    /// A yard in which a worker dies while it runs a copy that it has claimed. Answers the copy's id too.
    async fn with_a_lost_copy(lease_ms: u64) -> (Self, Api, TaskId) {
        let mut yard = Self::new(|_| {}).await;
        let [plain, other] = long_versions();
        yard.of_version("plain", LONG_MS, plain, Arc::new(Obedient::default()));
        let odd = Arc::new(Odd { gate: Some(Arc::new(Semaphore::new(0))), ..Odd::default() });
        let kill = yard.of_version("first", lease_ms, other, odd.clone());
        yard.scheduler(&long_versions());
        let api = Api::new(&yard).await;
        shadows(&mut yard, 1.0).await;
        yard.served(0..1).await;
        eventually("the copy to run", || odd.begun.load(Ordering::SeqCst) == 1).await;
        kill.cancel();
        let copy = yard.copies().await;
        assert_eq!((copy.len(), copy[0].state), (1, State::Running), "{copy:?}");
        (yard, api, copy[0].id)
    }

    async fn copies(&self) -> Vec<TaskResult> {
        let filter = Filter { tenant: Some("taskyard.shadow".into()), ..Filter::default() };
        self.store.list(&filter, None, 1_000).await.unwrap().tasks
    }

    /// Another worker of the version, which waits with every copy for a permit.
    fn another(&self) -> Arc<Semaphore> {
        let gate = Arc::new(Semaphore::new(0));
        let [_, other] = long_versions();
        self.of_version("second", LONG_MS, other, Arc::new(Odd { gate: Some(gate.clone()), ..Odd::default() }));
        gate
    }

    /// Of copies that were lost, so many of which were counted, nothing is left: there is room for 32, and 68 of a hundred tasks are
    /// skipped; and nobody was told.
    async fn has_all_its_room(&mut self, api: &Api, gate: &Semaphore, lost: u64) {
        self.served(100..200).await;
        let shadow = counted(api, lost + 68).await;
        assert_eq!(counts(&shadow), [0, 0, 0, lost + 68, 0], "{shadow}");
        gate.add_permits(100);
        let shadow = counted(api, lost + 100).await;
        let [same, different, failed, skipped, unknown] = counts(&shadow);
        assert_eq!((same + different + failed, skipped, unknown), (32, lost + 68, 0), "{shadow}");
        assert_eq!(self.messages, self.told.len(), "a result for each that was asked for");
        let queues = [self.topology.ready("m@2"), self.topology.retry(), self.topology.dead()];
        let empty = async {
            for queue in &queues {
                while self.broker.queue_state(queue).await.unwrap().is_none_or(|state| state.ready > 0) {
                    tokio::task::yield_now().await;
                }
            }
        };
        tokio::time::timeout(PATIENCE, empty).await.expect("the queues to be empty");
        // One that was lost ends with its lease.
        let ended = async {
            while !self.copies().await.iter().all(|copy| copy.state.is_terminal()) {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(PATIENCE, ended).await.expect("every copy to end");
    }
}

/// So long that attempts are claimed before they begin.
fn long_versions() -> [ModelSpec; 2] {
    versions().map(|spec| ModelSpec { expected_ms: Some(1_000.0), ..spec })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_its_worker_died_with_is_skipped_and_gives_its_room_back() {
    // Another worker finds it while its lease lives, or when it is over.
    for lease_ms in [5_000, 100] {
        let (mut yard, api, copy) = Yard::with_a_lost_copy(lease_ms).await;
        if lease_ms == 100 {
            let over = async {
                while yard.store.leased(vec![copy]).await.unwrap()[0] != Leased::Over {
                    tokio::task::yield_now().await;
                }
            };
            tokio::time::timeout(PATIENCE, over).await.expect("the lease to end");
        }
        let gate = yard.another();
        let shadow = counted(&api, 1).await;
        assert_eq!(counts(&shadow), [0, 0, 0, 1, 0], "{lease_ms} ms: {shadow}");
        yard.has_all_its_room(&api, &gate, 1).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shadow_that_ends_while_a_copy_is_lost_begins_anew_with_all_its_room() {
    let (mut yard, api, _) = Yard::with_a_lost_copy(100).await;
    // Nobody has the version, and tasks go on, until no more copies are kept.
    let gone = async {
        while yard.store.loads().await.unwrap().iter().any(|report| report.models.contains_key("m@2")) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the worker's report to expire");
    yard.served(1..41).await;
    counted(&api, 1).await;
    shadows(&mut yard, 0.0).await;
    assert_eq!(shown(&api).await, serde_json::Value::Null);
    // What is still under way is of the one before, and neither counts nor takes room.
    let gate = yard.another();
    shadows(&mut yard, 1.0).await;
    yard.has_all_its_room(&api, &gate, 0).await;
}
