//! Which queues there are, and which of them a message goes to: the default exchange, and topic exchanges as AMQP has
//! them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use super::queue::Queue;
use super::{NAME_BYTES, record};
use crate::broker::{BrokerError, Destination, QueueKind, QueueSpec};
use crate::journal::Batch;

/// Most queues, most exchanges, and most bindings of one exchange.
const NAMES: usize = 65_536;

#[derive(Default)]
pub(super) struct Routing {
    queues: HashMap<String, Arc<Queue>>,
    exchanges: HashMap<String, Vec<Binding>>,
    next_queue: u32,
}

struct Binding {
    pattern: Pattern,
    queue: Arc<Queue>,
}

impl Routing {
    pub fn queues(&self) -> impl Iterator<Item = &Arc<Queue>> {
        self.queues.values()
    }

    pub fn queue(&self, name: &str) -> Option<Arc<Queue>> {
        self.queues.get(name).cloned()
    }

    /// Each queue once. `None` when there is no such exchange.
    pub fn route(&self, to: &Destination) -> Option<Vec<Arc<Queue>>> {
        match to {
            Destination::Queue(name) => Some(self.queue(name).into_iter().collect()),
            Destination::Exchange { name, key } if name.is_empty() => Some(self.queue(key).into_iter().collect()),
            Destination::Exchange { name, key } => {
                let words: Vec<_> = words(key).collect();
                let mut queues: Vec<Arc<Queue>> = Vec::new();
                for binding in self.exchanges.get(name)? {
                    if !queues.iter().any(|queue| Arc::ptr_eq(queue, &binding.queue)) && binding.pattern.matches(&words)
                    {
                        queues.push(binding.queue.clone());
                    }
                }
                Some(queues)
            }
        }
    }

    pub fn add_queue(&mut self, queue: Arc<Queue>) {
        self.next_queue = self.next_queue.max(queue.number + 1);
        self.queues.insert(queue.name.clone(), queue);
    }

    pub fn add_exchange(&mut self, name: &str) {
        self.exchanges.entry(name.to_owned()).or_default();
    }

    pub fn add_binding(&mut self, exchange: &str, pattern: &str, queue: Arc<Queue>) {
        let bindings = self.exchanges.entry(exchange.to_owned()).or_default();
        bindings.push(Binding { pattern: Pattern::new(pattern), queue });
    }

    fn is_bound(&self, exchange: &str, pattern: &str, queue: &Queue) -> bool {
        let bindings = self.exchanges.get(exchange).map_or(&[][..], Vec::as_slice);
        bindings.iter().any(|binding| binding.pattern.text == pattern && binding.queue.name == queue.name)
    }
}

/// A change of the routing, with what the journal is to write of it.
pub(super) struct Change<'a> {
    pub routing: &'a mut Routing,
    pub batch: Option<Batch>,
}

impl Change<'_> {
    fn write(&mut self, encode: impl FnOnce(&mut Vec<u8>)) {
        if let Some(batch) = &mut self.batch {
            batch.put(encode);
        }
    }

    /// All of them, or none.
    pub fn declare(&mut self, specs: &[QueueSpec]) -> Result<(), BrokerError> {
        let mut new: HashMap<&str, &QueueSpec> = HashMap::new();
        let mut exchanges = HashSet::new();
        for spec in specs {
            check_name(&spec.name)?;
            for (exchange, pattern) in &spec.bindings {
                check_name(exchange)?;
                check_length(pattern)?;
                exchanges.insert(exchange.as_str());
            }
            let stands = match self.routing.queues.get(&spec.name) {
                Some(queue) => Some((queue.kind, queue.max_length)),
                None => new.insert(&spec.name, spec).map(|spec| (spec.kind, spec.max_length)),
            };
            if let Some(stands) = stands {
                check_same(spec, stands)?;
            }
        }
        let unknown = exchanges.iter().filter(|name| !self.routing.exchanges.contains_key(**name)).count();
        let bindings: usize = specs.iter().map(|spec| spec.bindings.len()).sum();
        let bound = exchanges.iter().filter_map(|name| self.routing.exchanges.get(*name)).map(Vec::len).max();
        if self.routing.queues.len() + new.len() > NAMES
            || self.routing.exchanges.len() + unknown > NAMES
            || bound.unwrap_or(0) + bindings > NAMES
        {
            return Err(BrokerError::Refused(format!("more than {NAMES} queues, exchanges or bindings")));
        }
        for spec in specs {
            self.declare_one(spec)?;
        }
        Ok(())
    }

    fn declare_one(&mut self, spec: &QueueSpec) -> Result<(), BrokerError> {
        let durable = spec.kind == QueueKind::Durable;
        let queue = match self.routing.queues.get(&spec.name) {
            Some(queue) => queue.clone(),
            None => {
                let number = self.routing.next_queue;
                let queue = Arc::new(Queue::new(spec.name.clone(), spec.kind, spec.max_length, number));
                if durable {
                    self.write(|out| record::put_queue(out, &queue));
                }
                self.routing.add_queue(queue.clone());
                queue
            }
        };
        for (exchange, pattern) in &spec.bindings {
            self.declare_exchange(exchange)?;
            if !self.routing.is_bound(exchange, pattern, &queue) {
                if durable {
                    self.write(|out| record::put_binding(out, exchange, pattern, queue.number));
                }
                self.routing.add_binding(exchange, pattern, queue.clone());
            }
        }
        Ok(())
    }

    pub fn declare_exchange(&mut self, name: &str) -> Result<(), BrokerError> {
        check_name(name)?;
        if !self.routing.exchanges.contains_key(name) {
            if self.routing.exchanges.len() >= NAMES {
                return Err(BrokerError::Refused(format!("more than {NAMES} exchanges")));
            }
            self.write(|out| record::put_exchange(out, name));
            self.routing.add_exchange(name);
        }
        Ok(())
    }
}

fn check_name(name: &str) -> Result<(), BrokerError> {
    if name.is_empty() {
        return Err(BrokerError::Refused("a queue or an exchange needs a name".into()));
    }
    check_length(name)
}

fn check_length(name: &str) -> Result<(), BrokerError> {
    if name.len() > NAME_BYTES {
        return Err(BrokerError::Refused(format!("a name or a pattern has more than {NAME_BYTES} bytes")));
    }
    Ok(())
}

fn check_same(spec: &QueueSpec, (kind, max_length): (QueueKind, Option<u64>)) -> Result<(), BrokerError> {
    let detail = if kind != spec.kind {
        format!("it is {kind:?}, not {:?}", spec.kind)
    } else if max_length != spec.max_length {
        let text = |length: Option<u64>| length.map_or("none".to_owned(), |length| length.to_string());
        format!("its greatest length is {}, not {}", text(max_length), text(spec.max_length))
    } else {
        return Ok(());
    };
    Err(BrokerError::Mismatch { queue: spec.name.clone(), detail })
}

/// The words of a routing key. An empty key has none.
fn words(key: &str) -> impl Iterator<Item = &str> {
    key.split('.').filter(move |_| !key.is_empty())
}

/// A binding's pattern: `*` stands for one word, `#` for any number of them.
struct Pattern {
    text: String,
    words: Vec<String>,
}

impl Pattern {
    fn new(text: &str) -> Self {
        Self { text: text.to_owned(), words: words(text).map(str::to_owned).collect() }
    }

    fn matches(&self, key: &[&str]) -> bool {
        let (mut at, mut key_at) = (0, 0);
        // Where the last `#` stands, and where the words after it began to be tried.
        let mut retry = None;
        while key_at < key.len() {
            match self.words.get(at).map(String::as_str) {
                Some("#") => {
                    retry = Some((at, key_at));
                    at += 1;
                    continue;
                }
                Some(word) if word == "*" || word == key[key_at] => {
                    at += 1;
                    key_at += 1;
                    continue;
                }
                _ => {}
            }
            // The last `#` takes one word more.
            let Some((hash, tried)) = retry else { return false };
            retry = Some((hash, tried + 1));
            (at, key_at) = (hash + 1, tried + 1);
        }
        self.words[at..].iter().all(|word| word == "#")
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Pattern, words};

    fn matches(pattern: &str, key: &str) -> bool {
        Pattern::new(pattern).matches(&words(key).collect::<Vec<_>>())
    }

    #[test]
    fn patterns_match_as_amqp_says() {
        for (pattern, key) in [
            ("#", ""),
            ("#", "a"),
            ("#", "a.b.c"),
            ("a.*", "a.b"),
            ("a.#", "a"),
            ("a.#", "a.b.c"),
            ("#.c", "a.b.c"),
            ("a.#.c", "a.c"),
            ("a.#.c", "a.b.c.c"),
            ("*.*", "a.b"),
            ("task.*.model", "task.succeeded.model"),
            ("task.#.v1", "task.failed.model.v1"),
            ("*", "a"),
            ("", ""),
            ("a..b", "a..b"),
            ("a.*.b", "a..b"),
        ] {
            assert!(matches(pattern, key), "{pattern} should match {key:?}");
        }
        for (pattern, key) in [
            ("a.*", "a"),
            ("a.*", "a.b.c"),
            ("*", ""),
            ("", "a"),
            ("a.#.c", "a.b"),
            ("#.c", "a.b"),
            ("a", "b"),
            ("a*", "ab"),
            ("*.*", "a"),
        ] {
            assert!(!matches(pattern, key), "{pattern} should not match {key:?}");
        }
    }

    /// Straight from the definition.
    fn by_definition(pattern: &[&str], key: &[&str]) -> bool {
        match (pattern, key) {
            ([], key) => key.is_empty(),
            (["#", rest @ ..], key) => (0..=key.len()).any(|taken| by_definition(rest, &key[taken..])),
            (["*", rest @ ..], [_, key @ ..]) => by_definition(rest, key),
            ([word, rest @ ..], [first, key @ ..]) => word == first && by_definition(rest, key),
            (_, []) => false,
        }
    }

    proptest! {
        #[test]
        fn matching_agrees_with_the_definition(
            pattern in proptest::collection::vec(prop_oneof!["a", "b", Just("*".to_owned()), Just("#".to_owned())], 0..7),
            key in proptest::collection::vec("[ab]", 0..7),
        ) {
            let expected = by_definition(
                &pattern.iter().map(String::as_str).collect::<Vec<_>>(),
                &key.iter().map(String::as_str).collect::<Vec<_>>(),
            );
            prop_assert_eq!(matches(&pattern.join("."), &key.join(".")), expected);
        }
    }
}
