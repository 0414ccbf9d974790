//! More executors than connections.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use opensandbox_operator::session::{Settings, Work};

use crate::desk::{Desk, new_key, order, quick};
use crate::fake::{Fake, stay};

#[tokio::test]
async fn executors_take_turns_and_there_are_never_too_many_connections() {
    const PODS: usize = 60;
    const CONNECTIONS: usize = 16;
    let (open, most) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
    let (now, top) = (Arc::clone(&open), Arc::clone(&most));
    let fake = Fake::start(move |_, _, stream| {
        let (now, top) = (Arc::clone(&now), Arc::clone(&top));
        async move {
            top.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            stay(&stream, &[]).await;
            now.fetch_sub(1, Ordering::SeqCst);
            false
        }
    })
    .await;
    let settings = Settings {
        connections: CONNECTIONS,
        turn: Duration::from_millis(20),
        ..quick(fake.port)
    };
    let mut desk = Desk::with(settings, vec![new_key()]);
    let orders = (0..PODS).map(|number| order(&format!("pod-{number}"), Work::Look));
    desk.sessions.set("sandbox", orders.collect());
    let mut heard = BTreeSet::new();
    while heard.len() < PODS {
        heard.insert(desk.next().await.pod_uid);
    }
    // One that was left is counted until it is seen to be, so a turn's change may count twice.
    let most = most.load(Ordering::SeqCst);
    assert!(most <= 2 * CONNECTIONS, "{most}");
    assert_eq!(desk.sessions.len(), PODS);
}
