//! Where the shell meets the parts that it only passes things on to: conversations with executors, and
//! the choice of a pool.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use kube::Client;
use tokio::sync::{mpsc, watch};

use super::actor::{Executors, Sealed};
use super::arguments::{Arguments, ExecutorProtocol};
use super::clock;
use super::router::{Choose, Message};
use super::world::Change;
use crate::assign;
use crate::keys::{self, KeyRing};
use crate::lease::Leadership;
use crate::session::{Credentials, Order, Protocol, Sessions, Settings};

/// Name under which the router waits for the keys, as it does for the lists of the watches: a pod that is
/// made without the key runs no task, ever.
pub(super) const KEYS: &str = "signing key";
/// Without a key, pools are looked after all the same when this has passed since this replica leads: they
/// may run no tasks, and an installation may not let the operator have a Secret.
const KEY_PATIENCE: Duration = Duration::from_secs(15);

/// Conversations with executors, whose reports go to the router.
pub(super) fn executors(
    arguments: &Arguments,
    client: &Client,
    leadership: &Leadership,
    messages: &mpsc::UnboundedSender<Message>,
) -> Box<dyn Executors> {
    let (protocol, keys) = match arguments.executor_protocol {
        ExecutorProtocol::Signed => {
            let keys = keys(arguments, client, leadership);
            tokio::spawn(tell_of_keys(
                keys.clone(),
                leadership.clone(),
                messages.clone(),
            ));
            (Protocol::Signed, Some(keys))
        }
        ExecutorProtocol::Upstream => {
            // Nothing to wait for.
            let _ = messages.send(keys_are_known());
            (Protocol::Upstream, None)
        }
    };
    let settings = Settings {
        protocol,
        ..Settings::default()
    };
    let lease = leadership.clone();
    let credentials = Credentials::new(keys, move || lease.remaining(), clock::now);
    let (deliveries, mut delivered) = mpsc::unbounded_channel::<crate::session::Delivery>();
    let messages = messages.clone();
    tokio::spawn(async move {
        while let Some(delivery) = delivered.recv().await {
            let report = Message::Report {
                sandbox_uid: delivery.sandbox_uid.clone(),
                report: Sealed::new(move || delivery.open()),
            };
            if messages.send(report).is_err() {
                return;
            }
        }
    });
    Box::new(Sessions::new(settings, credentials, deliveries))
}

impl Executors for Sessions {
    fn set(&self, sandbox_uid: &str, orders: Vec<Order>) {
        Self::set(self, sandbox_uid, orders);
    }
}

/// The keys that orders are signed with, as the Secret has them.
fn keys(
    arguments: &Arguments,
    client: &Client,
    leadership: &Leadership,
) -> watch::Receiver<Arc<KeyRing>> {
    let (ring, keys) = watch::channel(Arc::new(KeyRing::default()));
    let settings = keys::Settings {
        namespace: arguments.namespace.clone(),
        secret: arguments.key_secret_name.clone(),
        labels: BTreeMap::from([(
            "app.kubernetes.io/part-of".to_owned(),
            "opensandbox".to_owned(),
        )]),
    };
    let leadership = leadership.clone();
    let leads = move || leadership.check().is_ok();
    tokio::spawn(keys::run(client.clone(), settings, leads, ring));
    keys
}

fn keys_are_known() -> Message {
    Message::Listed {
        watch: KEYS.to_owned(),
        round: u64::MAX,
    }
}

/// Tells the router of the keys, now and whenever they change.
async fn tell_of_keys(
    mut keys: watch::Receiver<Arc<KeyRing>>,
    leadership: Leadership,
    messages: mpsc::UnboundedSender<Message>,
) {
    let patience = async {
        // Only who leads makes the first key.
        while leadership.check().is_err() {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        tokio::time::sleep(KEY_PATIENCE).await;
    };
    tokio::select! {
        first = keys.wait_for(|ring| !ring.is_empty()) => if first.is_err() {
            return;
        },
        () = patience => {
            tracing::warn!("there is no signing key yet; pods that are made now run no tasks");
        }
    }
    // Without a router this process is ending.
    let tell = |ring: &KeyRing| {
        if !ring.is_empty() {
            let change = Change::Keys(ring.verification_keys());
            let _ = messages.send(Message::Change(change));
        }
    };
    tell(&keys.borrow_and_update());
    let _ = messages.send(keys_are_known());
    while keys.changed().await.is_ok() {
        tell(&keys.borrow_and_update());
    }
}

/// The choice of a pool for `poolRef: "*"`.
pub(super) fn choose() -> Box<Choose> {
    Box::new(|sandbox, pools, world| assign::choose(sandbox, pools, world.profiles()))
}
