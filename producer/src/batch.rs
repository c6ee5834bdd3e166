//! Many tasks become few messages: JSON arrays of bounded count and size.

use std::ops::Range;

use bytes::Bytes;

/// Most tasks in one message.
pub const MESSAGE_TASKS: usize = 256;
/// A message is closed once it is over this; a larger task travels alone.
pub const MESSAGE_BYTES: usize = 512 << 10;

/// One message: which of the tasks it holds, as a JSON array.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pack {
    pub tasks: Range<usize>,
    pub body: Bytes,
}

/// Joins encoded tasks, in their order, into as few messages as the limits allow.
pub fn pack<T: AsRef<[u8]>>(tasks: &[T]) -> Vec<Pack> {
    let mut packs = Vec::new();
    let mut first = 0;
    while first < tasks.len() {
        let mut bytes = 2 + tasks[first].as_ref().len();
        let mut end = first + 1;
        while end < tasks.len() && end - first < MESSAGE_TASKS {
            bytes += 1 + tasks[end].as_ref().len();
            if bytes > MESSAGE_BYTES {
                break;
            }
            end += 1;
        }
        packs.push(Pack { tasks: first..end, body: join(&tasks[first..end]) });
        first = end;
    }
    packs
}

fn join<T: AsRef<[u8]>>(tasks: &[T]) -> Bytes {
    let mut body = Vec::with_capacity(tasks.iter().map(|task| task.as_ref().len() + 1).sum::<usize>() + 1);
    for (index, task) in tasks.iter().enumerate() {
        body.push(if index == 0 { b'[' } else { b',' });
        body.extend_from_slice(task.as_ref());
    }
    body.push(b']');
    body.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn covered(packs: &[Pack]) -> Vec<usize> {
        packs.iter().flat_map(|pack| pack.tasks.clone()).collect()
    }

    #[test]
    fn every_task_is_in_one_pack_and_in_its_place() {
        let tasks: Vec<String> = (0..1000).map(|number| format!("{{\"number\":{number}}}")).collect();
        let packs = pack(&tasks);
        assert_eq!(covered(&packs), (0..1000).collect::<Vec<_>>());
        assert_eq!(packs.len(), 1000usize.div_ceil(MESSAGE_TASKS));
        for pack in &packs {
            let members: Vec<serde_json::Value> = serde_json::from_slice(&pack.body).unwrap();
            let numbers: Vec<usize> = members.iter().map(|task| task["number"].as_u64().unwrap() as usize).collect();
            assert_eq!(numbers, pack.tasks.clone().collect::<Vec<_>>());
        }
    }

    #[test]
    fn large_tasks_travel_in_messages_of_their_own() {
        let large = format!("\"{}\"", "x".repeat(MESSAGE_BYTES - 100));
        let packs = pack(&["1", &large, &large, "2"]);
        assert!(packs.iter().all(|pack| pack.body.len() <= MESSAGE_BYTES));
        assert_eq!(covered(&packs), [0, 1, 2, 3]);
        assert_eq!(packs.len(), 2);
        let too_large = format!("\"{}\"", "x".repeat(2 * MESSAGE_BYTES));
        let alone = pack(&["1", &too_large, "2"]);
        assert_eq!(alone.iter().map(|pack| pack.tasks.clone()).collect::<Vec<_>>(), [0..1, 1..2, 2..3]);
    }

    #[test]
    fn no_tasks_are_no_messages() {
        assert!(pack::<&str>(&[]).is_empty());
    }
}
