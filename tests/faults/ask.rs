//! Asks over HTTP what became of what was accepted, as callers do who wait for it, and writes down what it is told.

use std::time::Duration;

use taskyard_shared::TaskResult;
use tokio::task::JoinHandle;
use uuid::Uuid;

use crate::ledger::TOLD;
use crate::load::{AGAIN_AFTER, Books, EVERY, http};
use crate::observe::told;

/// So many wait at a time, each for so long.
const ASKERS: usize = 32;
const WAIT: Duration = Duration::from_millis(500);

pub fn askers(api: &str, books: &Books) -> Vec<JoinHandle<()>> {
    (0..ASKERS).map(|_| tokio::spawn(ask(api.to_owned(), books.clone()))).collect()
}

async fn ask(api: String, books: Books) {
    let http = http();
    loop {
        let next = books.known.lock().unwrap().to_be_asked.pop_front();
        let Some(id) = next else {
            tokio::time::sleep(EVERY).await;
            continue;
        };
        let seen = look_up(&http, &api, id).await;
        let is_away = seen.is_none();
        match seen.filter(|result| result.state.is_terminal()) {
            Some(result) => {
                books.files.write(TOLD, &[told(&result)]);
                books.known.lock().unwrap().told.insert(id);
            }
            None => books.known.lock().unwrap().to_be_asked.push_back(id),
        }
        if is_away {
            tokio::time::sleep(AGAIN_AFTER).await;
        }
    }
}

async fn look_up(http: &reqwest::Client, api: &str, id: Uuid) -> Option<TaskResult> {
    let url = format!("{api}/v1/tasks/{id}?wait={}ms", WAIT.as_millis());
    http.get(url).send().await.ok()?.error_for_status().ok()?.json().await.ok()
}
