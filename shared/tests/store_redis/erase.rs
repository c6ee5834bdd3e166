//! Deleting a namespace takes all of it and nothing else.

use taskyard_shared::Topology;
use taskyard_shared::store::Retention;
use taskyard_shared::store::redis::RedisStore;

use super::server::{command, in_a_namespace, keys};
use super::settings;

#[tokio::test]
async fn erasing_deletes_the_namespace_and_leaves_its_neighbours() {
    in_a_namespace(async |url, topology| {
        // Its name begins with the other's.
        let neighbour = Topology::new(format!("{}-next", topology.namespace()));
        let kept = neighbour.key("kept");
        for number in 0..2_500 {
            command(url, &["SET", &topology.key(&format!("task:{number}")), "x"]).await.expect("SET");
        }
        command(url, &["SET", &kept, "x"]).await.expect("SET");
        let retention = Retention { finished_ms: 1_000, unfinished_ms: 1_000, listed: 10 };
        let store = RedisStore::connect(&settings(url, 30_000), topology, retention).expect("a store");
        store.erase(topology).await.expect("erasing");
        assert_eq!(keys(url, topology).await, [kept]);
        store.erase(&neighbour).await.expect("erasing");
        assert_eq!(keys(url, topology).await, Vec::<String>::new());
    })
    .await;
}
