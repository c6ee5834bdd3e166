//! Artifacts that nobody needs any more are removed, those of registered models are not.

use taskyard_shared::artifacts::{ArtifactError, Artifacts};
use taskyard_shared::deployment::{Deployed, Registration, Variant};

use super::*;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_old_goes_unless_a_registered_model_is_made_of_it() {
    let yard = Yard::new(|_| {}).await;
    let artifacts = Artifacts::in_memory();
    let (served, left) =
        (artifacts.put("served".into()).await.unwrap(), artifacts.put("left over".into()).await.unwrap());
    artifacts.put_note("vectors/x", "note".into()).await.unwrap();
    let variant = Variant {
        name: "m@2".into(),
        files: [("head".to_owned(), taskyard_shared::artifacts::Reference { to: served })].into(),
        ..Variant::default()
    };
    let registered = [("m@2".to_owned(), Registration { like: "m".into(), variant })].into();
    let mut deployed = Deployed::default();
    deployed.registered = registered;
    yard.store.put(Deployed::KEY, serde_json::to_vec(&deployed).unwrap().into()).await.unwrap();
    let registry = Registry::new().unwrap();
    let (broker, store, topology) = (yard.broker.clone(), yard.store.clone(), yard.topology.clone());
    let worker = Worker::new(broker, store, topology, yard.settings.worker.clone(), &registry).unwrap();
    let worker = worker.artifacts(artifacts.clone(), Some(Duration::ZERO));
    tokio::spawn(worker.run(CancellationToken::new(), CancellationToken::new()));
    let gone = async {
        while artifacts.get(left, 99).await.is_ok() || artifacts.note("vectors/x", 99).await.unwrap().is_some() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("it is removed");
    assert!(matches!(artifacts.get(left, 99).await, Err(ArtifactError::Missing(_))));
    assert_eq!(artifacts.get(served, 99).await.unwrap(), "served");
    let counted = "taskyard_artifacts_removed_total{what=\"artifact\"} 1";
    eventually("the count", || registry.render().unwrap().contains(counted)).await;
}
