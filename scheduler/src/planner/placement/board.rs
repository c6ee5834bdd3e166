//! The hosts as they will stand, while one call decides.

use super::{HostNow, ModelNow, Pin, Resources, Rules, Swap, SwapReason, us};

/// Models that are looked at for one swap: those with the most to gain.
const CANDIDATES: usize = 8;
/// How often work is moved from crowded holders to others when it is reckoned who serves what.
const ROUNDS: usize = 3;
/// Slots below which nothing is missing.
const NOTHING: f64 = 1e-6;

/// Why a model is loaded though it may not be worth its cost.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Force {
    Pin,
    Deadline,
    Starving,
}

impl Force {
    /// Whether others go for it before their time.
    fn breaks_stays(self) -> bool {
        self != Self::Starving
    }
}

#[derive(Clone, Copy)]
struct Place {
    model: u32,
    loaded_us: Option<u64>,
    running: u32,
    /// Slots that it is reckoned to keep busy here.
    granted: f64,
}

struct Desk {
    has: Resources,
    places: Vec<Place>,
    /// A starving model gets it once what is there has stayed for its time: until then nothing else is loaded, or small
    /// models that come and go would keep a large one out for ever.
    is_promised: bool,
}

impl Desk {
    fn slots(&self) -> f64 {
        f64::from(self.has.slots)
    }

    fn busy(&self) -> f64 {
        self.places.iter().map(|place| place.granted).sum()
    }

    fn spare(&self) -> f64 {
        (self.slots() - self.busy()).max(0.0)
    }

    /// A load takes a slot, so that no more go on at once than would otherwise idle, or one.
    fn may_load(&self) -> bool {
        let loading = self.places.iter().filter(|place| place.loaded_us.is_none()).count();
        let running: u32 = self.places.iter().map(|place| place.running).sum();
        loading < (self.has.slots.saturating_sub(running) as usize).max(1)
    }
}

pub(super) struct Board<'a> {
    now_us: u64,
    rules: &'a Rules,
    hosts: &'a [HostNow],
    models: &'a [ModelNow],
    desks: Vec<Desk>,
    /// Slots that each model could keep busy over its stay.
    wanted: Vec<f64>,
    /// How many hosts hold each model.
    holders: Vec<usize>,
    pub(super) swaps: Vec<Swap>,
}

/// A way to load a model.
struct Way {
    host: usize,
    unload: Vec<u32>,
    /// What it gains over what it costs, in slot seconds times their value.
    net: f64,
}

impl<'a> Board<'a> {
    pub(super) fn new(now_us: u64, rules: &'a Rules, hosts: &'a [HostNow], models: &'a [ModelNow]) -> Self {
        let mut holders = vec![0; models.len()];
        let mut running = vec![0.0; models.len()];
        let desks = hosts.iter().map(|host| {
            let known = host.holds.iter().filter(|held| (held.model as usize) < models.len());
            let places = known.map(|held| {
                if let (Some(count), Some(runs)) =
                    (holders.get_mut(held.model as usize), running.get_mut(held.model as usize))
                {
                    *count += 1;
                    *runs += f64::from(held.running);
                }
                Place { model: held.model, loaded_us: held.loaded_us, running: held.running, granted: 0.0 }
            });
            Desk { has: host.has, places: places.collect(), is_promised: false }
        });
        let desks = desks.collect();
        let wanted = models.iter().zip(&running).map(|(model, running)| {
            let stay = stay_seconds(rules, model);
            let least = rules.stay_loads * model.load_seconds;
            let at_hand = model.waiting_seconds + running * model.mean_seconds.min(stay);
            // What is yet to come counts by how long it would find the model there: not at all when loading takes nothing.
            ((at_hand + model.offered * least) / stay).max(0.0)
        });
        let wanted = wanted.collect();
        let mut board = Self { now_us, rules, hosts, models, desks, wanted, holders, swaps: Vec::new() };
        board.grant();
        board
    }

    pub(super) fn holders(&self, model: u32) -> usize {
        self.holders.get(model as usize).copied().unwrap_or(0)
    }

    fn model(&self, number: u32) -> Option<&'a ModelNow> {
        self.models.get(number as usize)
    }

    fn needs(&self, number: u32) -> Resources {
        self.model(number).map_or(Resources::default(), |model| model.needs)
    }

    fn value(&self, number: u32) -> f64 {
        self.model(number).map_or(0.0, |model| model.value)
    }

    fn taken<'b>(&self, places: impl Iterator<Item = &'b Place>) -> Resources {
        places.fold(Resources::default(), |sum, place| sum.and(self.needs(place.model)))
    }

    /// Unloads what a pin sends away, and what a host has no room for.
    pub(super) fn unload_unwanted(&mut self) {
        for host in 0..self.desks.len() {
            let Some(desk) = self.desks.get(host) else { continue };
            let goes = |place: &&Place| self.model(place.model).is_some_and(|model| model.pin == Some(Pin::Go));
            let unload: Vec<u32> = desk.places.iter().filter(goes).map(|place| place.model).collect();
            if !unload.is_empty() {
                self.apply(Way { host, unload, net: 0.0 }, None, SwapReason::Pinned);
            }
            let Some(desk) = self.desks.get(host) else { continue };
            let mut ranked = self.ranked(host, |_| true);
            // What is pinned goes last.
            ranked.sort_by_key(|&(_, model)| self.is_pinned(model));
            let mut places = desk.places.clone();
            let mut unload = Vec::new();
            for (_, model) in ranked {
                if self.taken(places.iter()).fit(desk.has) {
                    break;
                }
                places.retain(|place| place.model != model);
                unload.push(model);
            }
            if !unload.is_empty() {
                self.apply(Way { host, unload, net: 0.0 }, None, SwapReason::TooMuch);
            }
        }
    }

    fn is_pinned(&self, model: u32) -> bool {
        let stays = |model: &ModelNow| matches!(model.pin, Some(Pin::Stay(_)));
        self.model(model).is_some_and(stays)
    }

    /// Loads it where that costs least. Answers whether there is a host for it.
    pub(super) fn load(&mut self, model: u32, force: Force, reason: SwapReason) -> bool {
        let hosts = 0..self.desks.len();
        let ways = hosts.filter_map(|host| self.way(model, host, Some(force)));
        let best = ways.reduce(|best, way| if way.net > best.net { way } else { best });
        match best {
            Some(way) => {
                self.apply(way, Some(model), reason);
                true
            }
            None => false,
        }
    }

    /// Keeps a host free for a model that none can take now: the one that will be able to first.
    pub(super) fn promise(&mut self, model: u32) {
        let hosts = 0..self.desks.len();
        let soonest = hosts.filter_map(|host| Some((self.free_us(model, host)?, host))).min();
        if let Some(desk) = soonest.and_then(|(_, host)| self.desks.get_mut(host)) {
            desk.is_promised = true;
        }
    }

    /// When enough of what a host holds will have stayed for its time.
    fn free_us(&self, model: u32, host: usize) -> Option<u64> {
        let (desk, now) = (self.desks.get(host)?, self.hosts.get(host)?);
        if desk.is_promised || now.can_hold.as_ref().is_some_and(|models| models.binary_search(&model).is_err()) {
            return None;
        }
        let mut places = desk.places.clone();
        places.retain(|place| self.until_us(place).is_some());
        places.sort_by_key(|place| (self.until_us(place), place.model));
        let kept = desk.places.iter().filter(|place| self.until_us(place).is_none());
        let mut taken = self.taken(kept).and(self.needs(model)).and(self.taken(places.iter()));
        let mut free_us = self.now_us;
        for place in &places {
            if taken.fit(desk.has) {
                break;
            }
            taken = taken.less(self.needs(place.model));
            free_us = free_us.max(self.until_us(place)?);
        }
        taken.fit(desk.has).then_some(free_us)
    }

    /// Until when a model stays; `None` for as long as a pin says so.
    fn until_us(&self, place: &Place) -> Option<u64> {
        let model = self.model(place.model)?;
        if let Some(Pin::Stay(count)) = model.pin
            && self.holders(place.model) <= count as usize
        {
            return None;
        }
        let stay_us = us(self.rules.stay_loads * model.load_seconds);
        let loaded_us = place.loaded_us.unwrap_or(self.now_us.saturating_add(us(model.load_seconds)));
        Some(loaded_us.saturating_add(stay_us))
    }

    /// Makes the one swap that gains most over what it costs. Answers whether there is one.
    pub(super) fn swap_for_gain(&mut self) -> bool {
        let mut candidates: Vec<(f64, u32)> = (0..self.models.len() as u32)
            .map(|model| (self.missing(model) * self.value(model), model))
            .filter(|&(missing, _)| missing > NOTHING)
            .collect();
        candidates.sort_by(|(one, a), (other, b)| other.total_cmp(one).then(a.cmp(b)));
        candidates.truncate(CANDIDATES);
        let mut best: Option<(u32, Way)> = None;
        for (_, model) in candidates {
            for host in 0..self.desks.len() {
                if let Some(way) = self.way(model, host, None)
                    && way.net > best.as_ref().map_or(0.0, |(_, best)| best.net)
                {
                    best = Some((model, way));
                }
            }
        }
        match best {
            Some((model, way)) => {
                self.apply(way, Some(model), SwapReason::Demand);
                true
            }
            None => false,
        }
    }

    /// How a host could come to hold a model, and what that would gain.
    fn way(&self, model: u32, host: usize, force: Option<Force>) -> Option<Way> {
        let (desk, now, of_model) = (self.desks.get(host)?, self.hosts.get(host)?, self.model(model)?);
        let can = now.can_hold.as_ref().is_none_or(|models| models.binary_search(&model).is_ok());
        let holds = desk.places.iter().any(|place| place.model == model);
        let is_urgent = force.is_some_and(Force::breaks_stays);
        if holds || !can || of_model.pin == Some(Pin::Go) || desk.has.slots == 0 {
            return None;
        }
        if !is_urgent && (desk.is_promised || !desk.may_load()) {
            return None;
        }
        let mut places = desk.places.clone();
        let (mut unload, mut lost, mut freed) = (Vec::new(), 0.0, 0.0);
        if !self.taken(places.iter()).and(of_model.needs).fit(desk.has) {
            for (loss, other) in self.ranked(host, |place| self.may_go(place, is_urgent)) {
                freed += places.iter().find(|place| place.model == other).map_or(0.0, |place| place.granted);
                places.retain(|place| place.model != other);
                unload.push(other);
                lost += loss;
                if self.taken(places.iter()).and(of_model.needs).fit(desk.has) {
                    break;
                }
            }
            if !self.taken(places.iter()).and(of_model.needs).fit(desk.has) {
                return None;
            }
        }
        let stay = stay_seconds(self.rules, of_model);
        let (busy, others) = places.iter().fold((0.0, 0.0), |(busy, worth), place| {
            (busy + place.granted, worth + place.granted * self.value(place.model))
        });
        let most = self.missing(model).min(f64::from(of_model.needs.slots));
        let unused = most.min(desk.spare() + freed);
        // What it would take from those who stay is worth only what it is more worth than they.
        let taken = (most - unused).min(busy);
        let mean = if busy > 0.0 { others / busy } else { 0.0 };
        let gain = stay * (of_model.value * unused + (of_model.value - mean).max(0.0) * taken);
        // Loading takes a slot from the others as far as these have a use for it.
        let used = if desk.slots() > 0.0 { ((busy + unused) / desk.slots()).min(1.0) } else { 1.0 };
        let worth = (others + of_model.value * unused) / (busy + unused).max(NOTHING);
        Some(Way { host, unload, net: gain - lost - of_model.load_seconds * used * worth })
    }

    /// Whether a model has been there for long enough, and nothing keeps it.
    fn may_go(&self, place: &Place, is_urgent: bool) -> bool {
        let until_us = self.until_us(place);
        place.loaded_us.is_some() && until_us.is_some_and(|until_us| is_urgent || until_us <= self.now_us)
    }

    /// What may go from a host and what it would cost, the least first.
    fn ranked(&self, host: usize, may: impl Fn(&Place) -> bool) -> Vec<(f64, u32)> {
        let Some(desk) = self.desks.get(host) else { return Vec::new() };
        let places = desk.places.iter().filter(|place| may(place));
        let mut ranked: Vec<(f64, u32)> = places.map(|place| (self.loss(host, place), place.model)).collect();
        ranked.sort_by(|(one, a), (other, b)| one.total_cmp(other).then(a.cmp(b)));
        ranked
    }

    /// What would be lost were it not there: what no other holder could serve, and loading it again.
    fn loss(&self, host: usize, place: &Place) -> f64 {
        let Some(model) = self.model(place.model) else { return 0.0 };
        let stay = stay_seconds(self.rules, model);
        let mut elsewhere = 0.0;
        if self.holders(place.model) > 1 {
            for (_, desk) in (0..).zip(&self.desks).filter(|&(number, _)| number != host) {
                if let Some(other) = desk.places.iter().find(|other| other.model == place.model) {
                    elsewhere += desk.spare().min(f64::from(model.needs.slots) - other.granted).max(0.0);
                }
            }
            return model.value * stay * (place.granted - elsewhere).max(0.0);
        }
        let comes = model.offered * stay / model.mean_seconds.max(1e-6);
        let is_needed = if model.waiting_seconds > 0.0 { 1.0 } else { 1.0 - (-comes).exp() };
        model.value * (stay * place.granted + is_needed * model.load_seconds)
    }

    /// Slots that it could keep busy and has not.
    fn missing(&self, model: u32) -> f64 {
        let wanted = self.wanted.get(model as usize).copied().unwrap_or(0.0);
        let places = self.desks.iter().flat_map(|desk| &desk.places).filter(|place| place.model == model);
        (wanted - places.map(|place| place.granted).sum::<f64>()).max(0.0)
    }

    fn apply(&mut self, way: Way, load: Option<u32>, reason: SwapReason) {
        let Some(desk) = self.desks.get_mut(way.host) else { return };
        desk.places.retain(|place| !way.unload.contains(&place.model));
        desk.places.extend(load.map(|model| Place { model, loaded_us: None, running: 0, granted: 0.0 }));
        for model in &way.unload {
            if let Some(count) = self.holders.get_mut(*model as usize) {
                *count -= 1;
            }
        }
        if let Some(count) = load.and_then(|model| self.holders.get_mut(model as usize)) {
            *count += 1;
        }
        self.swaps.push(Swap { host: way.host as u32, unload: way.unload, load, reason });
        self.grant();
    }

    /// Reckons who serves what: each model's work is spread over its holders, none takes more than it has slots, and what is
    /// left over goes where there is room.
    fn grant(&mut self) {
        let mut left = self.wanted.clone();
        for place in self.desks.iter_mut().flat_map(|desk| &mut desk.places) {
            place.granted = 0.0;
        }
        for _ in 0..ROUNDS {
            let mut room = vec![0.0; self.models.len()];
            for desk in &self.desks {
                for place in &desk.places {
                    if let Some(room) = room.get_mut(place.model as usize) {
                        *room += self.room(desk, place);
                    }
                }
            }
            for host in 0..self.desks.len() {
                let Some(desk) = self.desks.get(host) else { continue };
                let asks = desk.places.iter().map(|place| {
                    let (left, all) = (
                        left.get(place.model as usize).copied().unwrap_or(0.0),
                        room.get(place.model as usize).copied().unwrap_or(0.0),
                    );
                    let own = self.room(desk, place);
                    if all > 0.0 { (left * own / all).min(own) } else { 0.0 }
                });
                let asks: Vec<f64> = asks.collect();
                let sum: f64 = asks.iter().sum();
                let part = if sum > 0.0 { (desk.spare() / sum).min(1.0) } else { 0.0 };
                if let Some(desk) = self.desks.get_mut(host) {
                    for (place, ask) in desk.places.iter_mut().zip(asks) {
                        place.granted += ask * part;
                    }
                }
            }
            for (model, left) in (0..).zip(&mut left) {
                let places = self.desks.iter().flat_map(|desk| &desk.places).filter(|place| place.model == model);
                let granted: f64 = places.map(|place| place.granted).sum();
                *left = (self.wanted.get(model as usize).copied().unwrap_or(0.0) - granted).max(0.0);
            }
        }
    }

    /// How much more a model could be served on a host.
    fn room(&self, desk: &Desk, place: &Place) -> f64 {
        let own = f64::from(self.needs(place.model).slots) - place.granted;
        desk.spare().min(own).max(0.0)
    }
}

/// How long a model is reckoned to stay.
fn stay_seconds(rules: &Rules, model: &ModelNow) -> f64 {
    (rules.stay_loads * model.load_seconds).max(rules.stay_least_seconds).max(1e-6)
}
