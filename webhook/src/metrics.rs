//! What the webhook tells Prometheus about itself.
//!
//! In: events and levels, reported by the server, the handlers and the certificate watcher.
//! Out: one OpenMetrics text for `/metrics`. Every name starts with `opensandbox_webhook_`. Label
//! values come from closed sets known at build time; no object name, namespace or path sent by a
//! client ever becomes a label, so the number of series is bounded. Needs no client.

use std::fmt;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// First bucket of the duration histogram, in seconds. A review is decided in some 40 µs; a
/// first bucket of the usual 5 ms would show nothing.
const FIRST_BUCKET: f64 = 50e-6;
/// 50 µs doubled 16 times is 3.3 s: the last bucket lies just below the handler's deadline.
const BUCKETS: u16 = 17;

/// Where the executor image of an injected sidecar came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Origin {
    /// The images ConfigMap in the Pool's namespace.
    ConfigMapNamespace,
    /// The images ConfigMap in the installation's namespace.
    ConfigMapInstallation,
    /// The value built into the program.
    Default,
    /// The Pool's own container.
    Own,
}

impl Origin {
    /// The value of the label `origin`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ConfigMapNamespace => "configmap-namespace",
            Self::ConfigMapInstallation => "configmap-installation",
            Self::Default => "default",
            Self::Own => "own",
        }
    }
}

/// Which certificate an expiry belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum CertificateKind {
    /// The certificate that the server presents.
    Leaf,
    /// The authority that signed it.
    Ca,
}

impl CertificateKind {
    /// The value of the label `kind`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Leaf => "leaf",
            Self::Ca => "ca",
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Admission {
    webhook: &'static str,
    verdict: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Webhook {
    webhook: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ImageOrigin {
    origin: &'static str,
}

/// All metrics of the program, and the registry that renders them.
///
/// Counters and gauges are atomics behind an `Arc`: a clone of one reports to the same series.
pub struct Metrics {
    registry: Registry,
    admission_requests: Family<Admission, Counter>,
    admission_duration: Family<Webhook, Histogram, fn() -> Histogram>,
    tls_handshake_failures: Family<Reason, Counter>,
    http_rejections: Family<Reason, Counter>,
    certificate_expiry: Family<Kind, Gauge>,
    injections: Family<ImageOrigin, Counter>,
    /// `admission_requests_in_flight`: reviews whose head has been read and whose answer is not
    /// yet made.
    pub in_flight: Gauge,
    /// `body_in_flight_bytes`: bytes reserved for request bodies at the moment; never more than
    /// the configured bound.
    pub body_bytes_in_flight: Gauge,
    /// `connections`: open connections of the HTTPS port, those in their TLS handshake included.
    pub connections: Gauge,
    /// `handler_panics_total`: reviews answered with 500 because their handler panicked. Any
    /// value above zero is a bug to report.
    pub handler_panics: Counter,
    /// `warnings_total`: admission warnings sent to users.
    pub warnings: Counter,
    /// `config_errors`: settings objects that are malformed at the moment and therefore ignored
    /// in favour of their last good value.
    pub config_errors: Gauge,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("opensandbox_webhook");
        let constructor: fn() -> Histogram = duration_histogram;
        let admission_duration = Family::new_with_constructor(constructor);
        registry.register_with_unit(
            "admission_duration",
            "Time from the head of a review read to its answer made, body included",
            Unit::Seconds,
            admission_duration.clone(),
        );
        let body_bytes_in_flight = Gauge::default();
        registry.register_with_unit(
            "body_in_flight",
            "Bytes reserved for request bodies",
            Unit::Bytes,
            body_bytes_in_flight.clone(),
        );
        let certificate_expiry = Family::default();
        registry.register_with_unit(
            "certificate_expiry_timestamp",
            "When the certificate in use expires, in seconds of the Unix epoch",
            Unit::Seconds,
            certificate_expiry.clone(),
        );
        let mut register = Register(&mut registry);
        Self {
            admission_requests: register.add("admission_requests", "Admission reviews answered"),
            tls_handshake_failures: register.add(
                "tls_handshake_failures",
                "Connections that ended before their TLS handshake did",
            ),
            http_rejections: register.add(
                "http_rejections",
                "Requests refused before any handler saw them",
            ),
            injections: register.add(
                "injections",
                "Sidecars injected, by where their image came from",
            ),
            in_flight: register.add(
                "admission_requests_in_flight",
                "Admission reviews being read or decided",
            ),
            connections: register.add("connections", "Open connections of the HTTPS port"),
            handler_panics: register.add("handler_panics", "Panics caught in admission handlers"),
            warnings: register.add("warnings", "Admission warnings sent"),
            config_errors: register
                .add("config_errors", "Malformed settings objects at the moment"),
            admission_duration,
            body_bytes_in_flight,
            certificate_expiry,
            registry,
        }
    }
}

/// Makes and registers a metric in one step, so that none can be made and forgotten.
struct Register<'a>(&'a mut Registry);

impl Register<'_> {
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        let metric = M::default();
        self.0.register(name, help, metric.clone());
        metric
    }
}

fn duration_histogram() -> Histogram {
    Histogram::new(exponential_buckets(FIRST_BUCKET, 2.0, BUCKETS))
}

impl Metrics {
    /// The duration series of one webhook, to be looked up once per route and not per request.
    pub fn admission_duration(&self, webhook: &'static str) -> Histogram {
        self.admission_duration
            .get_or_create_owned(&Webhook { webhook })
    }

    /// `admission_requests_total{webhook, verdict}`: one review was answered.
    pub fn admitted(&self, webhook: &'static str, verdict: &'static str) {
        self.admission_requests
            .get_or_create(&Admission { webhook, verdict })
            .inc();
    }

    /// `tls_handshake_failures_total{reason}`.
    pub fn handshake_failed(&self, reason: &'static str) {
        self.tls_handshake_failures
            .get_or_create(&Reason { reason })
            .inc();
    }

    /// `http_rejections_total{reason}`.
    pub fn rejected(&self, reason: &'static str) {
        self.http_rejections.get_or_create(&Reason { reason }).inc();
    }

    /// `certificate_expiry_timestamp_seconds{kind}`: `unix_seconds` is the end of validity of the
    /// certificate in use.
    pub fn certificate_expires(&self, kind: CertificateKind, unix_seconds: i64) {
        self.certificate_expiry
            .get_or_create(&Kind {
                kind: kind.as_str(),
            })
            .set(unix_seconds);
    }

    /// `injections_total{origin}`: one sidecar was added, its image coming from `origin`.
    pub fn injected(&self, origin: Origin) {
        self.injections
            .get_or_create(&ImageOrigin {
                origin: origin.as_str(),
            })
            .inc();
    }

    /// All metrics as OpenMetrics text, with the closing `# EOF`.
    ///
    /// # Errors
    /// When a metric cannot be formatted; none of those defined here does that.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(8 * 1024);
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use opensandbox_program::metrics_table;

    use super::*;

    #[test]
    fn every_metric_is_rendered_under_its_documented_name() {
        let metrics = Metrics::default();
        metrics.admission_duration("mutate").observe(60e-6);
        metrics.admitted("mutate", "allow");
        metrics.handshake_failed("timeout");
        metrics.rejected("busy");
        metrics.certificate_expires(CertificateKind::Leaf, 1_900_000_000);
        metrics.certificate_expires(CertificateKind::Ca, 2_000_000_000);
        metrics.injected(Origin::ConfigMapNamespace);
        metrics.in_flight.inc();
        metrics.body_bytes_in_flight.inc_by(10);
        metrics.connections.inc();
        metrics.handler_panics.inc();
        metrics.warnings.inc_by(2);
        metrics.config_errors.set(1);
        let text = metrics.encode().unwrap();
        for line in [
            r#"opensandbox_webhook_admission_requests_total{webhook="mutate",verdict="allow"} 1"#,
            r#"opensandbox_webhook_admission_duration_seconds_bucket{le="0.00005",webhook="mutate"} 0"#,
            r#"opensandbox_webhook_admission_duration_seconds_bucket{le="0.0001",webhook="mutate"} 1"#,
            r#"opensandbox_webhook_admission_duration_seconds_bucket{le="3.2768",webhook="mutate"} 1"#,
            "opensandbox_webhook_admission_requests_in_flight 1",
            "opensandbox_webhook_body_in_flight_bytes 10",
            "opensandbox_webhook_connections 1",
            r#"opensandbox_webhook_tls_handshake_failures_total{reason="timeout"} 1"#,
            r#"opensandbox_webhook_http_rejections_total{reason="busy"} 1"#,
            "opensandbox_webhook_handler_panics_total 1",
            r#"opensandbox_webhook_certificate_expiry_timestamp_seconds{kind="leaf"} 1900000000"#,
            r#"opensandbox_webhook_certificate_expiry_timestamp_seconds{kind="ca"} 2000000000"#,
            r#"opensandbox_webhook_injections_total{origin="configmap-namespace"} 1"#,
            "opensandbox_webhook_warnings_total 2",
            "opensandbox_webhook_config_errors 1",
            "# EOF",
        ] {
            assert!(
                text.lines().any(|have| have == line),
                "{line} is not in\n{text}"
            );
        }
        let page = include_str!("../../docs/metrics.md");
        assert_eq!(
            metrics_table::registered(&text),
            metrics_table::documented(page, "opensandbox_webhook_"),
            "left: what the program registers; right: docs/metrics.md"
        );
    }
}
