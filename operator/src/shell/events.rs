//! Events for users, published beside everything else: never waited for, and dropped when too many are.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use kube::runtime::events::{Event as Published, EventType, Recorder, Reporter};
use opensandbox_api::labels;
use tokio::sync::mpsc;

use super::metrics::Metrics;
use crate::lease::Leadership;
use crate::text::cut;
use crate::view::ObjectKey;
use crate::write::Event;

/// Name of the controller in events.
const CONTROLLER: &str = "opensandbox-operator";
/// Events that may wait.
const WAITING: usize = 1024;
/// Events published at once.
const AT_ONCE: usize = 4;
/// For one.
const DEADLINE: Duration = Duration::from_secs(5);
/// Bytes of a note; what Kubernetes takes.
const NOTE: usize = 1024;

type Waiting = (Event, ObjectReference);

/// Where actors put their events. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Events {
    queue: mpsc::Sender<Waiting>,
    metrics: Arc<Metrics>,
}

impl Events {
    /// A queue, and its other end for [`publish`].
    pub fn new(metrics: Arc<Metrics>) -> (Self, mpsc::Receiver<Waiting>) {
        let (queue, waiting) = mpsc::channel(WAITING);
        (Self { queue, metrics }, waiting)
    }

    /// Publishes an event about an object, some time.
    pub fn publish(&self, kind: &'static str, key: &ObjectKey, uid: Option<&str>, event: Event) {
        let object = ObjectReference {
            api_version: Some(format!("{}/{}", labels::GROUP, labels::VERSION)),
            kind: Some(kind.to_owned()),
            namespace: Some(key.namespace.clone()),
            name: Some(key.name.clone()),
            uid: uid.map(str::to_owned),
            ..ObjectReference::default()
        };
        if self.queue.try_send((event, object)).is_err() {
            self.metrics.events_dropped.inc();
        }
    }
}

/// Publishes what is queued, as long as this process leads.
pub async fn publish(
    client: Client,
    instance: String,
    leadership: Leadership,
    waiting: mpsc::Receiver<Waiting>,
    metrics: Arc<Metrics>,
) {
    let reporter = Reporter {
        controller: CONTROLLER.to_owned(),
        instance: Some(instance),
    };
    let recorder = Recorder::new(client, reporter);
    let waiting = futures::stream::unfold(waiting, async |mut waiting| {
        waiting.recv().await.map(|event| (event, waiting))
    });
    waiting
        .for_each_concurrent(AT_ONCE, async |(event, object)| {
            if leadership.check().is_err() {
                return;
            }
            let event = published(event);
            let publish = recorder.publish(&event, &object);
            let failure = match tokio::time::timeout(DEADLINE, publish).await {
                Ok(Ok(())) => return,
                Ok(Err(kube::Error::Api(status))) => status.reason.clone(),
                Ok(Err(_)) => "no answer".to_owned(),
                Err(_) => "late".to_owned(),
            };
            metrics.events_dropped.inc();
            tracing::debug!(reason = event.reason, failure, "event not published");
        })
        .await;
}

fn published(event: Event) -> Published {
    let Event {
        warning,
        reason,
        action,
        note,
    } = event;
    Published {
        type_: if warning {
            EventType::Warning
        } else {
            EventType::Normal
        },
        reason: reason.to_owned(),
        action: action.to_owned(),
        note: Some(cut(note, NOTE)),
        secondary: None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(note: &str) -> Event {
        Event {
            warning: true,
            reason: "PodLost",
            action: "Replacing",
            note: note.to_owned(),
        }
    }

    #[test]
    fn a_note_is_cut_to_what_kubernetes_takes() {
        let note = published(event(&"ä".repeat(2000))).note.unwrap();
        assert_eq!(note.len(), NOTE);
        assert!(note.ends_with('ä'));
    }

    #[test]
    fn a_full_queue_drops_and_counts() {
        let metrics = Arc::new(Metrics::default());
        let (events, waiting) = Events::new(Arc::clone(&metrics));
        let key = ObjectKey::new("ns", "p");
        for _ in 0..WAITING + 3 {
            events.publish("Pool", &key, Some("u"), event("n"));
        }
        assert_eq!(waiting.len(), WAITING);
        assert_eq!(metrics.events_dropped.get(), 3);
    }
}
