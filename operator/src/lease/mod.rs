//! Who leads, and until when this process may write.
//!
//! In: a Lease. Out: [`Leadership`], which everything that writes asks right before it sends. Needs a
//! client; what to do about a Lease is decided in [`decide`], which does not.
//!
//! The times are client-go's: a Lease is valid for 15 s after each renewal, is renewed every 2 s, and a
//! holder that could not renew it stops writing 10 s after its last renewal *began*. So 5 s lie between
//! the last write of one leader and the first of the next. What a process may still have in flight that
//! was stopped between the check and the write is refused by the versions that every write carries.

mod decide;
mod leadership;

use std::time::{Duration, Instant};

use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::Api;
use kube::api::PostParams;

pub use self::decide::{Decision, Observed, Record, decide};
pub use self::leadership::Leadership;
use crate::shell::clock;

/// The name that upstream's operator uses, so that it and ours never lead at once.
pub const DEFAULT_NAME: &str = "2fa1c467.opensandbox.io";

/// The three durations of an election.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long a Lease is valid after each renewal.
    pub duration: Duration,
    /// How long after the beginning of its last renewal a leader writes.
    pub renew_deadline: Duration,
    /// Between two looks at the Lease.
    pub retry: Duration,
}

impl Timing {
    /// What is wrong with these durations, if anything.
    pub fn problem(&self) -> Option<String> {
        if self.duration < Duration::from_secs(1) || self.duration.subsec_nanos() != 0 {
            return Some(
                "--lease-duration must be a whole number of seconds, 1s or more".to_owned(),
            );
        }
        if self.renew_deadline >= self.duration {
            return Some(format!(
                "--renew-deadline is {:?}; it must be less than --lease-duration, {:?}",
                self.renew_deadline, self.duration
            ));
        }
        if self.retry.is_zero() || self.retry * 2 > self.renew_deadline {
            return Some(format!(
                "--retry-period is {:?}; it must be more than 0 and at most half of \
                 --renew-deadline, {:?}",
                self.retry, self.renew_deadline
            ));
        }
        None
    }
}

/// How leadership was won.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Won {
    /// Whether nobody led before, or the one who did had given it up. If not, writes of that one may
    /// still be on their way.
    pub resigned: bool,
    /// `leaseTransitions` since.
    pub transitions: i32,
}

/// One process that would like to lead.
#[derive(Debug)]
pub struct Candidate {
    api: Api<Lease>,
    name: String,
    identity: String,
    timing: Timing,
    leadership: Leadership,
    start: Instant,
    observed: Option<Observed>,
    complained: bool,
}

impl Candidate {
    /// A candidate for the Lease `name` under a name that no other process has.
    pub fn new(api: Api<Lease>, name: String, identity: String, timing: Timing) -> Self {
        Self {
            api,
            name,
            identity,
            timing,
            leadership: Leadership::of_nobody(),
            start: Instant::now(),
            observed: None,
            complained: false,
        }
    }

    /// What this candidate will have once it has won, and no more once it has lost.
    pub fn leadership(&self) -> Leadership {
        self.leadership.clone()
    }

    /// The name under which it holds the Lease.
    pub fn identity(&self) -> &str {
        &self.identity
    }

    fn now(&self) -> Duration {
        self.start.elapsed()
    }

    /// One look at the Lease, and one try to take it if it is free.
    pub async fn attempt(&mut self) -> Option<Won> {
        match self.try_once().await {
            Ok(won) => {
                if std::mem::take(&mut self.complained) {
                    tracing::info!(lease = self.name, "the Lease can be used again");
                }
                won
            }
            Err(error) => {
                if !std::mem::replace(&mut self.complained, true) {
                    tracing::warn!(lease = self.name, %error, "the Lease cannot be used; trying on");
                }
                None
            }
        }
    }

    /// Waits until this process leads.
    pub async fn campaign(&mut self) -> Won {
        loop {
            if let Some(won) = self.attempt().await {
                return won;
            }
            let holder = self
                .observed
                .as_ref()
                .and_then(|observed| observed.record.holder.as_deref());
            tracing::debug!(lease = self.name, holder, "another replica leads");
            let wait = match decide(self.observed.as_ref(), &self.identity, self.now()) {
                Decision::Wait(left) => left.min(self.timing.retry),
                _ => self.timing.retry,
            };
            tokio::time::sleep(wait).await;
        }
    }

    /// Renews until that is no longer possible; says why. When the time is over, nothing is written any
    /// more, but the Lease is asked about once more: nobody may have wanted it while a clock was set, or
    /// the API server was away.
    pub async fn keep(&mut self) -> String {
        loop {
            let left = self.leadership.remaining();
            if let Some(left) = left {
                tokio::time::sleep(self.timing.retry.min(left)).await;
            }
            match self.renew().await {
                Ok(()) => {}
                Err(Renewal::Lost(why)) => {
                    self.leadership.end();
                    return why;
                }
                Err(Renewal::Failed(error)) if left.is_none() => {
                    return format!("the Lease could not be renewed in time: {error}");
                }
                Err(Renewal::Failed(error)) => {
                    tracing::warn!(
                        lease = self.name,
                        error,
                        "the Lease was not renewed; trying again"
                    );
                }
            }
        }
    }

    /// Gives the Lease up, so that the next leader need not wait. Nothing may be written any more.
    pub async fn resign(&mut self) {
        self.leadership.end();
        let mut lease = match self.read().await {
            Ok(Some(lease)) => lease,
            Ok(None) => return,
            Err(error) => {
                tracing::warn!(lease = self.name, %error, "the Lease could not be given up; it will run out");
                return;
            }
        };
        let spec = lease.spec.get_or_insert_default();
        if spec.holder_identity.as_deref() != Some(&self.identity) {
            return;
        }
        // As client-go does it: a holder without a name, for a second.
        spec.holder_identity = Some(String::new());
        spec.lease_duration_seconds = Some(1);
        spec.renew_time = Some(MicroTime(clock::now()));
        match self.replace(&lease).await {
            Ok(_) => tracing::info!(lease = self.name, "the Lease was given up"),
            Err(error) => {
                tracing::warn!(lease = self.name, %error, "the Lease could not be given up; it will run out");
            }
        }
    }

    async fn try_once(&mut self) -> Result<Option<Won>, kube::Error> {
        let lease = self.read().await?;
        let read = lease.as_ref().map(record);
        self.observed = Observed::after(self.observed.take(), read, self.now());
        let decision = decide(self.observed.as_ref(), &self.identity, self.now());
        let (transitions, resigned) = match decision {
            Decision::Wait(_) => return Ok(None),
            Decision::Create => (0, true),
            Decision::Take {
                transitions,
                resigned,
            } => (transitions, resigned),
            // Only after an answer was lost to a write of this very process.
            Decision::Ours => (lease.as_ref().map_or(0, transitions), false),
        };
        let began = Instant::now();
        let spec = Some(self.spec(transitions, None));
        let written = if let Some(mut lease) = lease {
            lease.spec = spec;
            self.replace(&lease).await
        } else {
            let lease = Lease {
                metadata: ObjectMeta {
                    name: Some(self.name.clone()),
                    ..ObjectMeta::default()
                },
                spec,
            };
            let params = PostParams::default();
            self.in_time(self.api.create(&params, &lease)).await
        };
        match written {
            Ok(lease) => {
                self.observed = Observed::after(None, Some(record(&lease)), self.now());
                self.leadership.extend(began, self.timing.renew_deadline);
                Ok(Some(Won {
                    resigned,
                    transitions,
                }))
            }
            // Another replica was faster.
            Err(kube::Error::Api(status)) if status.is_conflict() || status.is_already_exists() => {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn renew(&mut self) -> Result<(), Renewal> {
        let failed = |error: kube::Error| Renewal::Failed(error.to_string());
        let began = Instant::now();
        let Some(mut lease) = self.read().await.map_err(failed)? else {
            return Err(Renewal::Lost("the Lease was deleted".to_owned()));
        };
        let read = record(&lease);
        if read.holder.as_deref() != Some(&self.identity) {
            let holder = read.holder.as_deref().unwrap_or("nobody");
            return Err(Renewal::Lost(format!("the Lease is held by {holder}")));
        }
        let acquired = lease
            .spec
            .as_mut()
            .and_then(|spec| spec.acquire_time.take());
        lease.spec = Some(self.spec(read.transitions, acquired));
        self.replace(&lease).await.map_err(failed)?;
        self.leadership.extend(began, self.timing.renew_deadline);
        Ok(())
    }

    fn spec(&self, transitions: i32, acquired: Option<MicroTime>) -> LeaseSpec {
        let now = MicroTime(clock::now());
        LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: Some(
                i32::try_from(self.timing.duration.as_secs()).unwrap_or(i32::MAX),
            ),
            acquire_time: Some(acquired.unwrap_or_else(|| now.clone())),
            renew_time: Some(now),
            lease_transitions: Some(transitions),
            ..LeaseSpec::default()
        }
    }

    async fn read(&self) -> Result<Option<Lease>, kube::Error> {
        self.in_time(self.api.get_opt(&self.name)).await
    }

    async fn replace(&self, lease: &Lease) -> Result<Lease, kube::Error> {
        let params = PostParams::default();
        let replaced = self.api.replace(&self.name, &params, lease);
        self.in_time(replaced).await
    }

    /// Half of what a leader has: so that a request without an answer leaves time for another.
    async fn in_time<T>(
        &self,
        request: impl Future<Output = Result<T, kube::Error>>,
    ) -> Result<T, kube::Error> {
        let bound = self.timing.renew_deadline / 2;
        tokio::time::timeout(bound, request)
            .await
            .unwrap_or_else(|_| {
                Err(kube::Error::Service(
                    format!("no answer within {bound:?}").into(),
                ))
            })
    }
}

enum Renewal {
    Lost(String),
    Failed(String),
}

fn transitions(lease: &Lease) -> i32 {
    let spec = lease.spec.as_ref();
    spec.and_then(|spec| spec.lease_transitions)
        .unwrap_or_default()
}

fn record(lease: &Lease) -> Record {
    let spec = lease.spec.as_ref();
    let seconds = spec
        .and_then(|spec| spec.lease_duration_seconds)
        .unwrap_or_default();
    Record {
        holder: spec
            .and_then(|spec| spec.holder_identity.clone())
            .filter(|holder| !holder.is_empty()),
        duration: Duration::from_secs(u64::try_from(seconds).unwrap_or_default()),
        transitions: transitions(lease),
        version: lease.metadata.resource_version.clone().unwrap_or_default(),
    }
}
