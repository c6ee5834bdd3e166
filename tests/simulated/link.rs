//! One process's way to broker and store: how long what goes over it takes, and what was done to it. When it is cut, what was on its way
//! lands or does not, and whoever waits is told.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::{Instant, sleep, sleep_until};

/// What becomes of the next thing that is published.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Publishing {
    /// No confirm comes.
    Unconfirmed { lands: bool },
    /// The confirm is waited for in vain, and the messages land after that.
    Late,
    /// The broker says no.
    Refused,
    /// They land twice, as when a publisher that had no confirm repeats them.
    Twice,
}

/// What becomes of the next call of the store.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Calling {
    /// There is no answer in time.
    Unanswered { done: bool },
    /// Nor is there one, and it is carried out after that.
    Late,
}

pub struct Link {
    pub name: String,
    seed: u64,
    state: Mutex<State>,
    /// Counts cuts.
    epoch: watch::Sender<u64>,
}

struct State {
    passed: u64,
    dead: bool,
    /// What was on its way when it was cut last arrived.
    lands: bool,
    away_until: Instant,
    stalled_until: Instant,
    publishing: VecDeque<Publishing>,
    calling: VecDeque<Calling>,
}

impl Link {
    pub fn new(name: String, seed: u64) -> Arc<Self> {
        let now = Instant::now();
        let state = State {
            passed: 0,
            dead: false,
            lands: false,
            away_until: now,
            stalled_until: now,
            publishing: VecDeque::new(),
            calling: VecDeque::new(),
        };
        Arc::new(Self { name, seed, state: Mutex::new(state), epoch: watch::Sender::new(0) })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap()
    }

    pub fn epoch(&self) -> u64 {
        *self.epoch.borrow()
    }

    /// Waits until it is cut, if that was not done since this epoch.
    pub async fn cut_since(&self, epoch: u64) {
        let mut epochs = self.epoch.subscribe();
        let _never_closed = epochs.wait_for(|now| *now != epoch).await;
    }

    pub fn is_dead(&self) -> bool {
        self.state().dead
    }

    pub fn is_away(&self) -> bool {
        let state = self.state();
        state.dead || state.away_until > Instant::now()
    }

    pub fn is_stalled(&self) -> bool {
        self.state().stalled_until > Instant::now()
    }

    /// Whether what was sent in this epoch arrives now.
    pub fn arrives(&self, epoch: u64) -> bool {
        self.epoch() == epoch || self.state().lands
    }

    pub fn cut(&self, lands: bool, away: Duration) {
        {
            let mut state = self.state();
            state.lands = lands;
            state.away_until = state.away_until.max(Instant::now() + away);
            state.stalled_until = Instant::now();
        }
        self.epoch.send_modify(|epoch| *epoch += 1);
    }

    /// Its process is gone: nothing that it says counts any more.
    pub fn kill(&self, lands: bool) {
        self.state().dead = true;
        self.cut(lands, Duration::ZERO);
    }

    pub fn stall(&self, time: Duration) {
        let mut state = self.state();
        state.stalled_until = state.stalled_until.max(Instant::now() + time);
    }

    pub fn arm_publishing(&self, next: Publishing) {
        self.state().publishing.push_back(next);
    }

    pub fn arm_calling(&self, next: Calling) {
        self.state().calling.push_back(next);
    }

    pub fn disarm(&self) {
        let mut state = self.state();
        state.publishing.clear();
        state.calling.clear();
    }

    pub fn next_publishing(&self) -> Option<Publishing> {
        self.state().publishing.pop_front()
    }

    pub fn next_calling(&self) -> Option<Calling> {
        self.state().calling.pop_front()
    }

    /// As long as one way takes: mostly nothing, sometimes some milliseconds, so that answers overtake each other.
    pub async fn pass(&self) {
        let drawn = {
            let mut state = self.state();
            state.passed += 1;
            mixed(self.seed ^ state.passed.wrapping_mul(0x9e37_79b9_7f4a_7c15))
        };
        match drawn % 8 {
            0..=3 => tokio::task::yield_now().await,
            some @ 4..=6 => sleep(Duration::from_millis(some - 3)).await,
            _ => sleep(Duration::from_millis(3 + (drawn >> 8) % 20)).await,
        }
        loop {
            let until = self.state().stalled_until;
            if until <= Instant::now() {
                return;
            }
            sleep_until(until).await;
        }
    }

    /// Waits until it is stalled no more.
    pub async fn unstalled(&self) {
        let until = self.state().stalled_until;
        sleep_until(until).await;
    }
}

/// SplitMix64's last step.
pub fn mixed(mut word: u64) -> u64 {
    word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}
