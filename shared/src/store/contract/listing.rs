//! Lists: newest first, page by page, of what matches.

use super::*;
use crate::store::Filter;

/// Every page of a list, each at most `limit`; panics when it does not end.
async fn pages(store: &dyn Store, filter: &Filter, limit: usize) -> Vec<Vec<TaskResult>> {
    let mut pages = Vec::new();
    let mut cursor = None;
    for _ in 0..10_000 {
        let page = store.list(filter, cursor.as_deref(), limit).await.expect("list");
        assert!(page.tasks.len() <= limit, "{} tasks on a page of {limit}", page.tasks.len());
        assert!(page.tasks.iter().all(|task| filter.matches(task)));
        if !page.tasks.is_empty() {
            pages.push(page.tasks);
        }
        cursor = page.cursor;
        if cursor.is_none() {
            return pages;
        }
    }
    panic!("the list does not end");
}

async fn ids(store: &dyn Store, filter: &Filter, limit: usize) -> Vec<TaskId> {
    pages(store, filter, limit).await.into_iter().flatten().map(|task| task.id).collect()
}

/// Takes in `count` tasks of one tenant, one after another, each a millisecond younger, from `first` on. Oldest first.
async fn line(store: &dyn Store, tenant: &str, first: Timestamp, count: u64) -> Vec<TaskId> {
    let mut ids = Vec::new();
    for number in 0..count {
        // Ids that are not in the order of their acceptance.
        let id = TaskId(uuid::Uuid::new_v4());
        let mut record = TaskResult { tenant: tenant.to_owned(), ..queued(id) };
        record.timings.accepted = Some(first.plus_ms(number));
        store.accept(vec![Accept { record, ..acceptance(id) }]).await.expect("accept");
        ids.push(id);
    }
    ids
}

pub async fn lists_page_newest_first(store: Arc<dyn Store>) {
    let tenant = tenant();
    let first = Timestamp::now();
    let mut expected = line(&*store, &tenant, first, 25).await;
    expected.reverse();
    let filter = Filter { tenant: Some(tenant.clone()), ..Filter::default() };
    for limit in [1, 7, 25, 1_000] {
        assert_eq!(ids(&*store, &filter, limit).await, expected, "by {limit}");
    }
    // What comes in between two pages is newer than both: nothing is shown twice, nothing is left out.
    let page = store.list(&filter, None, 10).await.expect("list");
    let mut seen: Vec<_> = page.tasks.iter().map(|task| task.id).collect();
    line(&*store, &tenant, first.plus_ms(25), 3).await;
    let mut cursor = page.cursor;
    while let Some(from) = cursor {
        let page = store.list(&filter, Some(&from), 10).await.expect("list");
        seen.extend(page.tasks.iter().map(|task| task.id));
        cursor = page.cursor;
    }
    assert_eq!(seen, expected);
}

pub async fn lists_hold_what_matches(store: Arc<dyn Store>) {
    let tenant = tenant();
    let tasks = line(&*store, &tenant, Timestamp::now(), 6).await;
    let desk = Desk(store.clone());
    let fine = TaskResult { tenant: tenant.clone(), ..succeeded(tasks[1], 1, "1") };
    assert!(matches!(desk.settle_unclaimed(&fine).await, Settled::Done { .. }));
    desk.dispatched(tasks[2], "topics@1").await;
    desk.run(tasks[3], nonce(), LONG_MS, 1).await;
    let late = TaskResult { tenant: tenant.clone(), metadata: BTreeMap::new(), ..expired(tasks[4]) };
    assert!(matches!(desk.settle_unclaimed(&late).await, Settled::Done { .. }));

    let all = || Filter { tenant: Some(tenant.clone()), ..Filter::default() };
    let by_state = |state| Filter { state: Some(state), ..all() };
    let by_model = |model: &str| Filter { model: Some(model.to_owned()), ..all() };
    let label = BTreeMap::from([("source".to_owned(), "contract".to_owned())]);
    let cases = [
        (all(), vec![5, 4, 3, 2, 1, 0]),
        (by_state(State::Queued), vec![5, 0]),
        (by_state(State::Dispatched), vec![2]),
        (by_state(State::Running), vec![3]),
        (by_state(State::Succeeded), vec![1]),
        (by_state(State::Expired), vec![4]),
        (by_state(State::Failed), vec![]),
        (by_model("topics@1"), vec![2]),
        (by_model("topics"), vec![2]),
        (by_model("topic"), vec![]),
        (by_model("sentiment"), vec![5, 4, 3, 1, 0]),
        (by_model("sentiment@1"), vec![1]),
        (Filter { state: Some(State::Running), ..by_model("sentiment") }, vec![3]),
        (Filter { metadata: label.clone(), ..all() }, vec![5, 3, 2, 1, 0]),
        (Filter { metadata: label, ..by_state(State::Expired) }, vec![]),
    ];
    for (filter, numbers) in cases {
        let expected: Vec<_> = numbers.into_iter().map(|number: usize| tasks[number]).collect();
        assert_eq!(ids(&*store, &filter, 2).await, expected, "{filter:?}");
    }
    let shown = pages(&*store, &by_state(State::Succeeded), 10).await;
    assert_eq!(text(&shown[0][0]), text(&fine), "a list shows what a look-up shows");
}

pub async fn a_list_of_nothing_ends(store: Arc<dyn Store>) {
    let nobody = Filter { tenant: Some(tenant()), ..Filter::default() };
    assert!(ids(&*store, &nobody, 100).await.is_empty());
}

pub async fn a_forged_cursor_is_refused(store: Arc<dyn Store>) {
    line(&*store, &tenant(), Timestamp::now(), 1).await;
    for forged in ["", "0", "x", "+inf", "-", "[", "(a", "ünïcode", "../..", &"0".repeat(10_000)] {
        let answer = store.list(&Filter::default(), Some(forged), 10).await;
        assert!(matches!(answer, Err(StoreError::BadCursor)), "{forged:?} gave {answer:?}");
    }
}
