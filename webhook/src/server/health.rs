//! The plain port: is the process alive, may it get traffic, what does it count.
//!
//! In: named checks that other parts set. Out: `/healthz`, `/readyz` and `/metrics`, in the form
//! that Kubernetes components use themselves. Needs no client; it does not know what the checks
//! mean.

use std::fmt::Write;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use http::{HeaderValue, Method, Request, StatusCode};
use hyper::body::Incoming;

use super::connection::Respond;
use super::rejection::{Answer, Rejection, text, typed};
use crate::metrics::{CONTENT_TYPE, Metrics};

/// Named conditions that must all hold before the webhook gets traffic. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Readiness {
    checks: Arc<Mutex<Vec<Entry>>>,
}

#[derive(Debug)]
struct Entry {
    name: &'static str,
    failure: Option<String>,
}

/// One named condition of a [`Readiness`]. Clones set the same condition.
#[derive(Debug, Clone)]
pub struct Check {
    readiness: Readiness,
    index: usize,
}

impl Readiness {
    /// Adds the condition `name`, which fails until it is set; a name that is known already
    /// gives that condition, unchanged.
    pub fn register(&self, name: &'static str) -> Check {
        let mut checks = self.lock();
        let index = checks
            .iter()
            .position(|entry| entry.name == name)
            .unwrap_or_else(|| {
                checks.push(Entry {
                    name,
                    failure: Some("not checked yet".to_owned()),
                });
                checks.len() - 1
            });
        drop(checks);
        Check {
            readiness: self.clone(),
            index,
        }
    }

    /// Whether every condition holds.
    pub fn is_ready(&self) -> bool {
        self.lock().iter().all(|entry| entry.failure.is_none())
    }

    /// Whether every condition holds, and one line for each, in order of registration:
    /// `[+]name ok` or `[-]name failed: reason`.
    pub fn report(&self) -> (bool, String) {
        let checks = self.lock();
        let mut ready = true;
        let mut report = String::with_capacity(256);
        for Entry { name, failure } in checks.iter() {
            let written = match failure {
                None => writeln!(report, "[+]{name} ok"),
                Some(reason) => {
                    ready = false;
                    writeln!(report, "[-]{name} failed: {reason}")
                }
            };
            written.expect("writing to a string does not fail");
        }
        report.push_str(if ready {
            "readyz check passed\n"
        } else {
            "readyz check failed\n"
        });
        (ready, report)
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        // Every change below is a single assignment, so a poisoned list is still a whole one.
        self.checks.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Check {
    /// The condition holds.
    pub fn pass(&self) {
        self.store(None);
    }

    /// The condition does not hold, for a reason that people read; no secrets, one line.
    pub fn fail(&self, reason: impl Into<String>) {
        self.store(Some(reason.into()));
    }

    /// [`Self::pass`] or [`Self::fail`]; `reason` is used by the latter only.
    pub fn set(&self, holds: bool, reason: impl Into<String>) {
        self.store((!holds).then(|| reason.into()));
    }

    fn store(&self, failure: Option<String>) {
        self.readiness.lock()[self.index].failure = failure;
    }
}

/// The service behind the plain port.
#[derive(Debug)]
pub(super) struct Probes {
    pub(super) readiness: Readiness,
    pub(super) metrics: Arc<Metrics>,
}

impl Probes {
    fn answer(&self, method: &Method, path: &str) -> Answer {
        let known = matches!(path, "/healthz" | "/readyz" | "/metrics");
        if !known {
            return Rejection::BadPath.answer();
        }
        if method != Method::GET && method != Method::HEAD {
            return Rejection::Method("GET, HEAD").answer();
        }
        match path {
            "/healthz" => healthy(),
            "/readyz" => {
                let (ready, report) = self.readiness.report();
                let status = if ready {
                    StatusCode::OK
                } else {
                    StatusCode::SERVICE_UNAVAILABLE
                };
                text(status, Bytes::from(report))
            }
            _ => match self.metrics.encode() {
                Ok(metrics) => typed(
                    StatusCode::OK,
                    HeaderValue::from_static(CONTENT_TYPE),
                    Bytes::from(metrics),
                ),
                Err(_) => text(
                    StatusCode::INTERNAL_SERVER_ERROR,
                    Bytes::from_static(b"the metrics could not be formatted\n"),
                ),
            },
        }
    }
}

/// The answer of `/healthz`, on both ports.
pub(super) fn healthy() -> Answer {
    text(StatusCode::OK, Bytes::from_static(b"ok"))
}

impl Respond for Probes {
    async fn respond(&self, request: Request<Incoming>) -> Answer {
        self.answer(request.method(), request.uri().path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readiness_needs_every_check_and_lists_each() {
        let readiness = Readiness::default();
        assert!(readiness.is_ready());
        let certificate = readiness.register("certificate");
        let images = readiness.register("images");
        certificate.pass();
        assert_eq!(
            readiness.report(),
            (
                false,
                "[+]certificate ok\n[-]images failed: not checked yet\nreadyz check failed\n"
                    .to_owned()
            )
        );
        images.set(true, "unused");
        readiness.register("certificate").fail("expired");
        assert_eq!(
            readiness.report().1,
            "[-]certificate failed: expired\n[+]images ok\nreadyz check failed\n"
        );
        certificate.pass();
        assert!(readiness.is_ready());
    }

    #[test]
    fn probes_answer_get_on_three_paths_only() {
        let probes = Probes {
            readiness: Readiness::default(),
            metrics: Arc::default(),
        };
        let check = probes.readiness.register("one");
        let status = |method: &Method, path: &str| probes.answer(method, path).status().as_u16();
        assert_eq!(status(&Method::GET, "/healthz"), 200);
        assert_eq!(status(&Method::GET, "/readyz"), 503);
        check.pass();
        assert_eq!(status(&Method::HEAD, "/readyz"), 200);
        assert_eq!(status(&Method::GET, "/metrics"), 200);
        assert_eq!(status(&Method::POST, "/metrics"), 405);
        assert_eq!(status(&Method::GET, "/"), 404);
    }
}
