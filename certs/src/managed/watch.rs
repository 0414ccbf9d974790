//! Hints that something changed: watches on the objects of the self-managed mode.
//!
//! In: a client and names; out: a fired trigger. A hint carries no content; whoever is woken reads
//! for himself.

use std::time::Duration;

use futures::StreamExt as _;
use futures::future::join_all;
use k8s_openapi::api::admissionregistration::v1::{
    MutatingWebhookConfiguration, ValidatingWebhookConfiguration,
};
use k8s_openapi::api::core::v1::Secret;
use kube::api::{Api, WatchEvent, WatchParams};

use super::{BACKOFF, Settings};
use crate::publish::Target;
use crate::status::Trigger;

/// Fires the trigger at every change of the objects this mode works with. Never ends.
pub(super) async fn all(client: &kube::Client, settings: &Settings) {
    let secrets = Api::<Secret>::namespaced(client.clone(), &settings.namespace);
    let secret = watch_one(secrets, &settings.secret, &settings.trigger);
    let configurations = settings.configurations.iter().map(|target| async move {
        match target {
            Target::Mutating(name) => {
                let api = Api::<MutatingWebhookConfiguration>::all(client.clone());
                watch_one(api, name, &settings.trigger).await;
            }
            Target::Validating(name) => {
                let api = Api::<ValidatingWebhookConfiguration>::all(client.clone());
                watch_one(api, name, &settings.trigger).await;
            }
        }
    });
    futures::future::join(secret, join_all(configurations)).await;
}

/// Watches metadata only, so that no key travels for a mere hint. A watch that breaks is opened
/// again; what happened in between is covered, because a new watch begins with the present state.
async fn watch_one<K>(api: Api<K>, name: &str, trigger: &Trigger)
where
    K: kube::Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned,
{
    /// The server ends a watch after this; the client gives up soon after, in case the server is
    /// gone without a word.
    const TIMEOUT: u32 = 290;
    let params = WatchParams::default()
        .fields(&format!("metadata.name={name}"))
        .timeout(TIMEOUT);
    let mut backoff = BACKOFF.0;
    loop {
        let session = async {
            let Ok(events) = api.watch_metadata(&params, "0").await else {
                return;
            };
            let mut events = std::pin::pin!(events);
            while let Some(Ok(event)) = events.next().await {
                match event {
                    WatchEvent::Added(_) | WatchEvent::Modified(_) | WatchEvent::Deleted(_) => {
                        backoff = BACKOFF.0;
                        trigger.fire();
                    }
                    WatchEvent::Bookmark(_) => {}
                    WatchEvent::Error(_) => return,
                }
            }
        };
        // A failing watch is not reported: the reads of the same object fail as well, and those are.
        let limit = Duration::from_secs(u64::from(TIMEOUT) + 10);
        let _ = tokio::time::timeout(limit, session).await;
        tokio::time::sleep(backoff).await;
        backoff = BACKOFF.1.min(backoff * 2);
    }
}
