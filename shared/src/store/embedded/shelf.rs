//! What the store keeps beside records, all of it small: load reports, announced models, values.

use std::collections::BTreeMap;

use bytes::Bytes;

use super::entry;
use crate::journal::{Address, Batch};
use crate::load::{LoadReport, ModelSpec};
use crate::store::StoreError;

/// Most workers, most models, and most values.
const THINGS: usize = 10_000;

/// Name of the value that holds the paused models: no caller's key is empty.
const PAUSED: &str = "";

#[derive(Default)]
pub(super) struct Shelf {
    /// Each with when it expires, in milliseconds since the Unix epoch.
    reports: BTreeMap<String, (u64, LoadReport)>,
    models: BTreeMap<String, (ModelSpec, Option<Address>)>,
    values: BTreeMap<String, (Bytes, Option<Address>)>,
}

fn check_room(there: usize, what: &str) -> Result<(), StoreError> {
    if there >= THINGS { Err(StoreError::Refused(format!("more than {THINGS} {what}"))) } else { Ok(()) }
}

/// Puts an entry in the place of an older one; answers where it is.
fn write(batch: &mut Option<Batch>, old: Option<Address>, encode: impl FnOnce(&mut Vec<u8>)) -> Option<Address> {
    let batch = batch.as_mut()?;
    if let Some(old) = old {
        batch.kill(old);
    }
    Some(batch.put(encode))
}

impl Shelf {
    pub fn restore_model(&mut self, name: &str, json: &[u8], address: Address) -> Result<(), String> {
        let model = serde_json::from_slice(json).map_err(|error| format!("the model {name:?}: {error}"))?;
        self.models.insert(name.to_owned(), (model, Some(address)));
        Ok(())
    }

    pub fn restore_value(&mut self, key: &str, value: &[u8], address: Address) -> Result<(), String> {
        self.values.insert(key.to_owned(), (Bytes::copy_from_slice(value), Some(address)));
        Ok(())
    }

    pub fn report(&mut self, report: &LoadReport, expires_ms: u64, now_ms: u64) -> Result<(), StoreError> {
        if !self.reports.contains_key(&report.worker) {
            self.reports.retain(|_, (expires_ms, _)| *expires_ms > now_ms);
            check_room(self.reports.len(), "workers")?;
        }
        self.reports.insert(report.worker.clone(), (expires_ms, report.clone()));
        Ok(())
    }

    pub fn remove_report(&mut self, worker: &str) {
        self.reports.remove(worker);
    }

    pub fn reports(&self, now_ms: u64) -> Vec<LoadReport> {
        self.reports.values().filter(|(expires_ms, _)| *expires_ms > now_ms).map(|(_, report)| report.clone()).collect()
    }

    /// All of them, or none.
    pub fn announce(&mut self, models: &[ModelSpec], batch: &mut Option<Batch>) -> Result<(), StoreError> {
        // Workers announce what they serve at every start: mostly it is known.
        let changed = |model: &&ModelSpec| self.models.get(&model.name).is_none_or(|(known, _)| known != *model);
        let mut changes = Vec::new();
        for model in models.iter().filter(changed) {
            changes.push((model, serde_json::to_vec(model).map_err(|error| StoreError::Refused(error.to_string()))?));
        }
        let new = changes.iter().filter(|(model, _)| !self.models.contains_key(&model.name)).count();
        if new > 0 {
            check_room(self.models.len() + new - 1, "models")?;
        }
        for (model, json) in changes {
            let old = self.models.get(&model.name).and_then(|(_, address)| *address);
            let address = write(batch, old, |out| entry::put_model(out, &model.name, &json));
            self.models.insert(model.name.clone(), (model.clone(), address));
        }
        Ok(())
    }

    pub fn models(&self) -> Vec<ModelSpec> {
        self.models.values().map(|(model, _)| model.clone()).collect()
    }

    pub fn put(&mut self, key: &str, value: Bytes, batch: &mut Option<Batch>) -> Result<(), StoreError> {
        let known = self.values.get(key);
        if known.is_none() {
            check_room(self.values.len(), "values")?;
        }
        let old = known.and_then(|(_, address)| *address);
        let address = write(batch, old, |out| entry::put_value(out, key, &value));
        self.values.insert(key.to_owned(), (value, address));
        Ok(())
    }

    /// They are one value.
    pub fn pause(&mut self, model: &str, paused: bool, batch: &mut Option<Batch>) -> Result<(), StoreError> {
        let mut models = self.paused()?;
        match (models.binary_search_by(|known| known.as_str().cmp(model)), paused) {
            (Err(place), true) => {
                check_room(models.len(), "paused models")?;
                models.insert(place, model.to_owned());
            }
            (Ok(place), false) => {
                models.remove(place);
            }
            _ => return Ok(()),
        }
        let json = serde_json::to_vec(&models).map_err(|error| StoreError::Refused(error.to_string()))?;
        self.put(PAUSED, json.into(), batch)
    }

    /// In the order of their names.
    pub fn paused(&self) -> Result<Vec<String>, StoreError> {
        match self.values.get(PAUSED) {
            Some((json, _)) => {
                serde_json::from_slice(json).map_err(|error| StoreError::Corrupt(format!("the paused models: {error}")))
            }
            None => Ok(Vec::new()),
        }
    }

    pub fn fetch(&self, key: &str) -> Option<Bytes> {
        self.values.get(key).map(|(value, _)| value.clone())
    }
}
