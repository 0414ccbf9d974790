//! What the outside may know: whether calls can succeed, why not, and when certificates end.
//!
//! Two parts of a mode write it (the one that gets certificates and the one that proves them), a
//! readiness endpoint and metrics read it. Needs no client.

use std::sync::{Arc, Mutex, PoisonError};

use jiff::Timestamp;
use tokio::sync::{Notify, watch};

/// State of the serving certificate.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    /// A certificate is loaded and valid now.
    pub serving: bool,
    /// What is needed to verify it is published in every configuration.
    pub published: bool,
    /// A call through the published bundle succeeded, and went on succeeding. True as well when
    /// there is nothing to verify with (then `reason` says so).
    pub proved: bool,
    /// For people: what is missing, or what went wrong lately. Empty when all is well.
    pub reason: String,
    /// Last moment of validity of the served certificate.
    pub leaf_not_after: Option<Timestamp>,
    /// Last moment of validity of the authority that signs (self-managed mode), or of the first
    /// certificate in `ca.crt`.
    pub ca_not_after: Option<Timestamp>,
    /// How often a certificate was put in place of another, for a counter.
    pub replaced: u64,
}

impl Status {
    /// Whether this replica should get calls.
    pub fn ready(&self) -> bool {
        self.serving && self.published && self.proved
    }
}

/// Makes a running mode look at everything now. Clones trigger the same mode.
#[derive(Debug, Clone, Default)]
pub struct Trigger(Arc<Notify>);

impl Trigger {
    /// Look now. Several calls before the look happens are one.
    pub fn fire(&self) {
        self.0.notify_one();
    }

    pub(crate) async fn fired(&self) {
        self.0.notified().await;
    }
}

/// Joins what the two writers know into one [`Status`]; observers are woken only by a difference.
#[derive(Debug)]
pub(crate) struct Board {
    status: watch::Sender<Status>,
    reasons: Mutex<[String; 2]>,
}

/// Who writes.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Writer {
    Source = 0,
    Probe = 1,
}

impl Board {
    pub(crate) fn new(status: watch::Sender<Status>) -> Self {
        Self {
            status,
            reasons: Mutex::default(),
        }
    }

    pub(crate) fn write(&self, writer: Writer, reason: String, edit: impl FnOnce(&mut Status)) {
        let reason = {
            // A panic elsewhere leaves two strings; they are still two strings.
            let mut reasons = self.reasons.lock().unwrap_or_else(PoisonError::into_inner);
            reasons[writer as usize] = reason;
            let told: Vec<&str> = reasons
                .iter()
                .map(String::as_str)
                .filter(|reason| !reason.is_empty())
                .collect();
            told.join("; ")
        };
        self.status.send_if_modified(|status| {
            let before = status.clone();
            edit(status);
            status.reason = reason;
            *status != before
        });
    }
}
