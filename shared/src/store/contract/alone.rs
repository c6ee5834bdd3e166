//! A task whose attempts are lost with their workers: it is run once more with nothing beside it, and not again if that ends
//! likewise.

use super::*;

fn beside(id: TaskId, nonce: u128, beside: Beside) -> Claim {
    Claim { beside, max_attempts: 100, ..claim_of(id, nonce, 0) }
}

pub async fn an_attempt_after_a_lost_one_has_its_worker_to_itself_and_is_the_last_if_it_is_lost(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, second) = (TaskId::new(), nonce());
    desk.open(id).await;
    let answer = desk.claim(beside(id, nonce(), Beside::Others)).await;
    assert!(matches!(answer, Claimed::Run { attempt: 1 }), "{answer:?}");
    for _ in 0..2 {
        let answer = desk.claim(beside(id, nonce(), Beside::Others)).await;
        assert!(matches!(answer, Claimed::Lost), "{answer:?}");
    }
    assert_eq!(desk.show(id).await.attempt, 1, "nothing was begun");
    // The answer that was lost is the same attempt.
    for _ in 0..2 {
        let answer = desk.claim(beside(id, second, Beside::Nothing)).await;
        assert!(matches!(answer, Claimed::Run { attempt: 2 }), "{answer:?}");
    }
    for how in [Beside::Others, Beside::OthersAnyway, Beside::Nothing] {
        let Claimed::Fatal { attempts, worker } = desk.claim(beside(id, nonce(), how)).await else {
            panic!("it is run again")
        };
        assert_eq!((attempts, worker.as_deref()), (2, Some("worker-1")));
    }
    // Whoever was taken for dead may still have done it.
    assert!(matches!(desk.settle(2, second, &succeeded(id, 2, "1")).await, Settled::Done { .. }));
}

pub async fn what_others_were_let_run_beside_is_not_held_against_a_task(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, second, third) = (TaskId::new(), nonce(), nonce());
    desk.open(id).await;
    desk.run(id, nonce(), 0, 1).await;
    let answer = desk.claim(beside(id, second, Beside::Nothing)).await;
    assert!(matches!(answer, Claimed::Run { attempt: 2 }), "{answer:?}");
    // Others run there from now on.
    let answer = desk.claim(beside(id, second, Beside::OthersAnyway)).await;
    assert!(matches!(answer, Claimed::Run { attempt: 2 }), "{answer:?}");
    let answer = desk.claim(beside(id, nonce(), Beside::Others)).await;
    assert!(matches!(answer, Claimed::Lost), "{answer:?}");
    let answer = desk.claim(beside(id, third, Beside::Nothing)).await;
    assert!(matches!(answer, Claimed::Run { attempt: 3 }), "{answer:?}");
    // One that is given back was not lost.
    assert_eq!(desk.release(id, third, true).await, Released::Released);
    let answer = desk.claim(beside(id, nonce(), Beside::Others)).await;
    assert!(matches!(answer, Claimed::Run { attempt: 4 }), "{answer:?}");
}

pub async fn what_was_asked_of_a_task_outlives_an_attempt_that_runs_alone(store: Arc<dyn Store>) {
    let desk = Desk(store);
    let (id, lone) = (TaskId::new(), nonce());
    desk.open(id).await;
    let highest = Some(Priority::HIGHEST);
    desk.0.reprioritize(vec![(id, highest)]).await.expect("reprioritize");
    let answer = desk.claim(Claim { lease_ms: LONG_MS, ..beside(id, lone, Beside::Nothing) }).await;
    assert!(matches!(answer, Claimed::Run { attempt: 1 }), "{answer:?}");
    desk.0.cancel(vec![id]).await.expect("cancel");
    assert_eq!(desk.show(id).await.priority, Priority::HIGHEST);
    assert_eq!(desk.renew(id, lone, LONG_MS).await, Renewed::CancelRequested);
    assert_eq!(desk.release(id, lone, true).await, Released::Released);
    assert_eq!(desk.show(id).await.priority, Priority::HIGHEST);
    assert!(matches!(desk.claim(beside(id, nonce(), Beside::Others)).await, Claimed::Unwanted { attempts: 1 }));
}
