//! What the journal keeps, over every way of ending and many random histories.

use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt;
use std::sync::mpsc;
use std::time::Duration;

use super::*;

const LIMIT: Duration = Duration::from_secs(30);

fn open(dir: &Path) -> (Journal, BTreeMap<u64, (Address, Vec<u8>)>) {
    let mut found = BTreeMap::new();
    let mut last = 0;
    let journal = Journal::open(dir, "test", |address, bytes| {
        assert!(address.0.get() > last, "not in the order they were put");
        last = address.0.get();
        found.insert(address.0.get(), (address, bytes.to_vec()));
        Ok(())
    });
    (journal.unwrap(), found)
}

fn contents(dir: &Path) -> Vec<Vec<u8>> {
    open(dir).1.into_values().map(|(_, bytes)| bytes).collect()
}

async fn put(journal: &Journal, entries: &[&[u8]]) -> Vec<Address> {
    let mut batch = journal.reserve(0).await.unwrap();
    let addresses = entries.iter().map(|bytes| batch.put(|out| out.extend_from_slice(bytes))).collect();
    batch.commit(true).await.unwrap();
    addresses
}

#[tokio::test]
async fn an_entry_lives_until_it_is_killed_and_takes_no_other_with_it() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let addresses = put(&journal, &[b"a", b"b", b"", b"d"]).await;
    journal.kill([addresses[1], addresses[3]]);
    drop(journal);
    assert_eq!(contents(dir.path()), [&b"a"[..], b""]);
    let (journal, found) = open(dir.path());
    journal.kill(found.values().map(|(address, _)| *address));
    drop(journal);
    assert!(contents(dir.path()).is_empty());
}

#[tokio::test]
async fn a_batch_replaces_an_entry_at_once() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let old = put(&journal, &[b"old"]).await[0];
    let mut batch = journal.reserve(0).await.unwrap();
    batch.kill(old);
    let middle = batch.put(|out| out.extend_from_slice(b"middle"));
    batch.kill(middle);
    batch.put(|out| out.extend_from_slice(b"new"));
    batch.commit(true).await.unwrap();
    drop(journal);
    assert_eq!(contents(dir.path()), [b"new"]);
}

#[tokio::test]
async fn large_entries_and_large_batches_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let large = vec![7; 5 << 20];
    let mut entries = vec![&large[..]];
    entries.extend((0..1_000).map(|_| &b"small"[..]));
    entries.push(&large);
    put(&journal, &entries).await;
    drop(journal);
    assert!(contents(dir.path()) == entries);
}

/// Random puts, replacements and kills. After each commit the file is copied as it lies there, which is what a crash
/// would leave: what is found in the copy must be what was answered by then.
#[tokio::test]
async fn what_is_found_after_a_crash_is_what_was_answered() {
    let seed = fastrand::u64(..);
    let random = &mut fastrand::Rng::with_seed(seed);
    let dir = tempfile::tempdir().unwrap();
    let (mut journal, _) = open(dir.path());
    let mut model: BTreeMap<u64, (Address, Vec<u8>)> = BTreeMap::new();
    for step in 0..120 {
        let mut batch = journal.reserve(0).await.unwrap();
        for _ in 0..random.usize(..150) {
            if random.bool() && !model.is_empty() {
                let keys: Vec<_> = model.keys().copied().collect();
                let (address, _) = model.remove(&keys[random.usize(..keys.len())]).unwrap();
                batch.kill(address);
            }
            let bytes: Vec<u8> = (0..random.usize(..300)).map(|_| random.u8(..)).collect();
            let address = batch.put(|out| out.extend_from_slice(&bytes));
            model.insert(address.0.get(), (address, bytes));
        }
        if random.u8(..4) == 0 {
            // Killed without a batch: written with the next commit at the latest.
            let keys: Vec<_> = model.keys().copied().filter(|_| random.u8(..3) == 0).collect();
            let own: Vec<_> = keys.iter().filter_map(|key| model.remove(key)).map(|(address, _)| address).collect();
            let (of_batch, rest): (Vec<_>, Vec<_>) =
                own.into_iter().partition(|address| batch.chunks.iter().any(|chunk| chunk.number == address.chunk()));
            of_batch.into_iter().for_each(|address| batch.kill(address));
            journal.kill(rest);
        }
        batch.commit(true).await.unwrap();
        if random.u8(..6) == 0 {
            let crashed = tempfile::tempdir().unwrap();
            std::fs::copy(dir.path().join("test.redb"), crashed.path().join("test.redb")).unwrap();
            assert!(open(crashed.path()).1 == model, "seed {seed}, after step {step}");
        }
        if random.u8(..12) == 0 {
            drop(journal);
            let found;
            (journal, found) = open(dir.path());
            assert!(found == model, "seed {seed}, reopened after step {step}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn callers_wait_while_too_much_waits_for_the_disk() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    // The journal's thread is kept busy, as by a slow disk.
    let (go_on, until) = mpsc::channel::<()>();
    let mut batch = journal.reserve(0).await.unwrap();
    batch.put(|out| out.push(1));
    let busy = move |_| assert!(until.recv().is_err(), "nothing is ever sent");
    batch.submit(true, Some(Box::new(busy)));
    let mut waiting = 0;
    loop {
        let Ok(batch) = tokio::time::timeout(Duration::from_millis(300), journal.reserve(1 << 20)).await else { break };
        let mut batch = batch.unwrap();
        batch.put(|out| out.resize(1 << 20, 0));
        batch.submit(true, None);
        waiting += 1;
        assert!(waiting <= 64, "nothing holds the callers back");
    }
    assert!(waiting > 32);
    drop(go_on);
    let room = tokio::time::timeout(LIMIT, journal.reserve(1 << 20)).await;
    assert!(room.is_ok_and(|room| room.is_ok()), "no room though all was written");
}

#[tokio::test]
async fn a_closed_journal_says_so() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    let mut late = journal.reserve(0).await.unwrap();
    late.put(|out| out.push(1));
    journal.close();
    assert_eq!(late.commit(true).await, Err(JournalError::Closed));
    assert!(matches!(journal.reserve(0).await.err(), Some(JournalError::Closed)));
    assert!(contents(dir.path()).is_empty());
}

#[tokio::test]
async fn what_its_owner_cannot_read_is_corrupt() {
    let dir = tempfile::tempdir().unwrap();
    let (journal, _) = open(dir.path());
    put(&journal, &[b"entry"]).await;
    drop(journal);
    match Journal::open(dir.path(), "test", |_, _| Err("what is this?".into())).err() {
        Some(JournalError::Corrupt(why)) => {
            assert!(why.contains("what is this?") && why.contains("test.redb"), "{why}")
        }
        other => panic!("{other:?}"),
    }
}

#[test]
fn what_it_makes_is_for_its_user_alone_and_what_is_there_stays() {
    let dir = tempfile::tempdir().unwrap();
    let mode = |path: &std::path::Path| path.metadata().unwrap().permissions().mode() & 0o777;
    let (above, folder) = (dir.path().join("above"), dir.path().join("above/folder"));
    drop(open(&folder));
    assert_eq!((mode(&above), mode(&folder), mode(&folder.join("test.redb"))), (0o700, 0o700, 0o600));
    for (path, theirs) in [(folder.clone(), 0o755), (folder.join("test.redb"), 0o644)] {
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(theirs)).unwrap();
    }
    drop(open(&folder));
    assert_eq!((mode(&folder), mode(&folder.join("test.redb"))), (0o755, 0o644));
}

#[tokio::test]
async fn a_folder_that_cannot_be_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "").unwrap();
    let opened = Journal::open(&file.join("folder"), "test", |_, _| Ok(()));
    assert!(matches!(opened.err(), Some(JournalError::Failed(_))));
}
