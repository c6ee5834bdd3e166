//! Deleting everything that a yard has: for yards that were made to be measured and thrown away.

use redis::{Cmd, Value, cmd};

use super::RedisStore;
use super::link::{array, bytes, unexpected};
use crate::store::StoreError;
use crate::topology::Topology;

/// Keys that the server looks at in one round trip.
const KEYS_AT_ONCE: &str = "2000";

impl RedisStore {
    /// Deletes every key of the namespace. Looks at every key of the database for it.
    ///
    /// # Errors
    /// When the server does not answer, or does not let this user do it; some keys may be gone by then.
    pub async fn erase(&self, topology: &Topology) -> Result<(), StoreError> {
        let pattern = topology.key("*");
        let mut cursor = b"0".to_vec();
        loop {
            let mut scan = cmd("SCAN");
            scan.arg(&cursor).arg("MATCH").arg(&pattern).arg("COUNT").arg(KEYS_AT_ONCE);
            let [next, keys] = <[Value; 2]>::try_from(array(self.command(scan).await?)?)
                .map_err(|_| unexpected("a scan without cursor and keys"))?;
            let keys = array(keys)?.into_iter().map(bytes).collect::<Result<Vec<_>, _>>()?;
            if !keys.is_empty() {
                let mut unlink: Cmd = cmd("UNLINK");
                keys.iter().for_each(|key| {
                    unlink.arg(&key[..]);
                });
                self.command(unlink).await?;
            }
            cursor = bytes(next)?.to_vec();
            if cursor == b"0" {
                return Ok(());
            }
        }
    }
}
