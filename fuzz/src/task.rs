//! Tasks as anybody publishes them, one or a batch.

use std::borrow::Borrow;

use taskyard_shared::broker::Properties;
use taskyard_shared::dead::Letter;
use taskyard_shared::task::limits;
use taskyard_shared::{Carried, Envelope, Invalid, Reply, State, Task, Topology, decode_tasks, wire};

use super::{check_refusal, now};

/// Whatever it is, it is refused with a reason, or is tasks that the roles can hand to each other unchanged.
pub fn check(bytes: &[u8]) {
    match decode_tasks(bytes) {
        Err(invalid) => check_refused(bytes, &invalid),
        Ok(tasks) => {
            assert!((1..=limits::BATCH_TASKS).contains(&tasks.len()));
            for task in tasks {
                match task {
                    Err(invalid) => check_refused(bytes, &invalid),
                    Ok(task) => check_task(task),
                }
            }
        }
    }
}

/// Its dead letter says the same when it is read again.
fn check_refused(bytes: &[u8], invalid: &Invalid) {
    check_refusal(invalid);
    let properties = Properties { reply_to: Some("answers".into()), ..Properties::default() };
    let body = bytes.to_vec().into();
    let letter = Letter::of_published(&properties, invalid.id, invalid.code, &invalid.to_string(), body);
    let message = letter.message(&Topology::new("yard"));
    let again = Letter::read(&message.properties, message.body);
    assert_eq!((again.id(), &again.reason, &again.body), (letter.id(), &letter.reason, &letter.body));
    assert!(!again.members().is_empty());
}

fn check_task(task: Task) {
    // Properties of the worst kind: what the body says wins over them, and what it leaves open is refused for them.
    let worst = Carried {
        message_id: Some("\r\n".into()),
        priority: Some(255),
        app_id: Some(String::new()),
        expiration: Some("-1".into()),
        reply: Some(Reply { to: "".into(), correlation_id: None, array: true }),
        ..Carried::default()
    };
    if let Err(invalid) = Envelope::new(task.clone(), &worst, now()) {
        check_refusal(&invalid);
    }
    let envelope = Envelope::new(task, &Carried::default(), now()).expect("a task that was read can be taken in");
    let written = wire::write(&envelope).expect("what was read can be written");
    let read = wire::read_envelopes(&written).expect("what was written can be read");
    assert_eq!(shown(&read[0]), shown(&envelope));
    let published = wire::write(&envelope.to_task()).expect("what was read can be published again");
    // It says what was left open, and may be longer for that.
    if published.len() <= limits::TASK_BYTES {
        let task = decode_tasks(&published).expect("its own body").remove(0).expect("its own task");
        let again = Envelope::new(task, &Carried::default(), now()).expect("the same task");
        assert_eq!(shown(&again), shown(&envelope));
        assert_eq!(again.fingerprint(), envelope.fingerprint());
    }
    let result = wire::write(&envelope.result(State::Queued)).expect("its result can be written");
    assert_eq!(wire::read_all::<taskyard_shared::TaskResult>(&result).map(|results| results.len()).ok(), Some(1));
}

fn shown(envelope: impl Borrow<Envelope>) -> String {
    format!("{:?}", envelope.borrow())
}
