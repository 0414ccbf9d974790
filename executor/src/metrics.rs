//! What the executor tells Prometheus about itself.
//!
//! In: events and levels, reported by engine, injection, output and server. Out: one OpenMetrics text
//! for `/metrics`. Every name starts with `task_executor_`. Label values come from closed sets known
//! at build time: no name, command or path of a task or client ever becomes one. So the number of
//! series is bounded, and the text may be read without a token.

use std::fmt;
use std::time::Duration;

use opensandbox_api::task::StartFailure;
use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

use crate::launch::Mode;

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Tasks take from a millisecond to hours: 1 ms, each bucket four times the one before, to 4.7 h.
const TASK_BUCKETS: (f64, f64, u16) = (1e-3, 4.0, 13);
/// An injection takes milliseconds, and is given up after seconds: 0.25 ms doubled 16 times is 8 s.
const INJECTION_BUCKETS: (f64, f64, u16) = (250e-6, 2.0, 16);

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Injection {
    mode: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OfMode {
    mode: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Answered {
    route: &'static str,
    code: u16,
}

/// What other parts count, as of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Measured {
    /// Bytes that tasks printed.
    pub output_bytes: u64,
    /// Of those, the ones that the buffers keep no more.
    pub output_dropped_bytes: u64,
    /// Of those, the ones that this container's log leaves out.
    pub log_dropped_bytes: u64,
    /// Tasks whose process runs.
    pub tasks_running: usize,
}

/// All metrics of the program, and the registry that renders them.
///
/// Counters and gauges are atomics behind an `Arc`: a clone of one reports to the same series.
pub struct Metrics {
    registry: Registry,
    tasks_started: Counter,
    tasks_ended: Family<Reason, Counter>,
    start_failures: Family<Kind, Counter>,
    task_duration: Histogram,
    injection_duration: Histogram,
    injections: Family<Injection, Counter>,
    output_bytes: Counter,
    output_dropped_bytes: Counter,
    http_requests: Family<Answered, Counter>,
    auth_rejections: Family<Reason, Counter>,
    connections_refused: Counter,
    agent_restarts: Counter,
    ready: Gauge,
    mode_info: Family<OfMode, Gauge>,
    tasks_running: Gauge,
    /// `connections`: open connections.
    pub connections: Gauge,
    /// `streams`: watches and followed logs at the moment.
    pub streams: Gauge,
    log_dropped_bytes: Counter,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("task_executor");
        let task_duration = histogram(TASK_BUCKETS);
        registry.register_with_unit(
            "task_duration",
            "Time from a task's start to its end",
            Unit::Seconds,
            task_duration.clone(),
        );
        let injection_duration = histogram(INJECTION_BUCKETS);
        registry.register_with_unit(
            "injection_duration",
            "Time to bring the agent into the sandbox container, failures included",
            Unit::Seconds,
            injection_duration.clone(),
        );
        let mut register = Register(&mut registry);
        Self {
            tasks_started: register.add("tasks_started", "Tasks whose program was started"),
            tasks_ended: register.add("tasks_ended", "Tasks that ended, by the reason reported"),
            start_failures: register.add("start_failures", "Tasks that could not be started"),
            injections: register.add("injections", "Attempts to bring an agent in, by their end"),
            output_bytes: register.add("output_bytes", "Bytes that tasks printed"),
            output_dropped_bytes: register.add(
                "output_dropped_bytes",
                "Bytes that tasks printed and the bounded buffers keep no more",
            ),
            http_requests: register.add("http_requests", "Requests answered"),
            auth_rejections: register.add("auth_rejections", "Requests refused for their token"),
            connections_refused: register.add(
                "connections_refused",
                "Connections closed because there were too many",
            ),
            agent_restarts: register.add("agent_restarts", "Agents lost and brought in again"),
            ready: register.add("ready", "1 if tasks can be started"),
            mode_info: register.add("mode", "1 for the way in which tasks get in"),
            tasks_running: register.add("tasks_running", "Tasks whose process runs"),
            connections: register.add("connections", "Open connections"),
            streams: register.add("streams", "Watches and followed logs"),
            log_dropped_bytes: register.add(
                "log_dropped_bytes",
                "Bytes of task output left out of this container's log for its rate limit",
            ),
            task_duration,
            injection_duration,
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

fn histogram((first, factor, count): (f64, f64, u16)) -> Histogram {
    Histogram::new(exponential_buckets(first, factor, count))
}

impl Metrics {
    /// `tasks_started_total`: a task's program runs.
    pub fn task_started(&self) {
        self.tasks_started.inc();
    }

    /// `tasks_ended_total{reason}`: `reason` is one of [`opensandbox_api::task::reason`].
    /// `duration`, if known, goes to `task_duration_seconds`.
    pub fn task_ended(&self, reason: &'static str, duration: Option<Duration>) {
        self.tasks_ended.get_or_create(&Reason { reason }).inc();
        if let Some(duration) = duration {
            self.task_duration.observe(duration.as_secs_f64());
        }
    }

    /// `start_failures_total{kind}`: a task could not be started.
    pub fn start_failed(&self, failure: StartFailure) {
        let kind = match failure {
            StartFailure::NotFound => "not-found",
            StartFailure::NotExecutable => "not-executable",
            StartFailure::BadWorkingDirectory => "bad-working-directory",
            StartFailure::Invalid => "invalid",
            StartFailure::NoTarget => "no-target",
            StartFailure::InjectionRefused => "injection-refused",
            StartFailure::ResourcesExhausted => "resources-exhausted",
            StartFailure::Other => "other",
        };
        self.start_failures.get_or_create(&Kind { kind }).inc();
    }

    /// `injections_total{mode, result}` and `injection_duration_seconds`: an attempt to bring the
    /// agent in came to its end. `failure` is `None` for success, else the kind of failure in one word
    /// of a small fixed set.
    pub fn injected(&self, mode: Mode, failure: Option<&'static str>, duration: Duration) {
        let labels = Injection {
            mode: mode.name(),
            result: failure.unwrap_or("success"),
        };
        self.injections.get_or_create(&labels).inc();
        self.injection_duration.observe(duration.as_secs_f64());
    }

    /// Brings up to date what is counted elsewhere: `output_bytes_total`, `output_dropped_bytes_total`,
    /// `log_dropped_bytes_total`, `tasks_running`. Totals since the start of the program never shrink.
    pub fn measured(&self, measured: Measured) {
        let raise = |counter: &Counter, total: u64| {
            counter.inc_by(total.saturating_sub(counter.get()));
        };
        raise(&self.output_bytes, measured.output_bytes);
        raise(&self.output_dropped_bytes, measured.output_dropped_bytes);
        raise(&self.log_dropped_bytes, measured.log_dropped_bytes);
        self.tasks_running
            .set(i64::try_from(measured.tasks_running).unwrap_or(i64::MAX));
    }

    /// `http_requests_total{route, code}`: a request was answered, or its answer began.
    pub fn answered(&self, route: &'static str, code: u16) {
        self.http_requests
            .get_or_create(&Answered { route, code })
            .inc();
    }

    /// `auth_rejections_total{reason}`.
    pub fn auth_rejected(&self, reason: &'static str) {
        self.auth_rejections.get_or_create(&Reason { reason }).inc();
    }

    /// `connections_refused_total`: there were too many, and none to give up for it.
    pub fn connection_refused(&self) {
        self.connections_refused.inc();
    }

    /// `agent_restarts_total`: an agent was lost and another one brought in.
    pub fn agent_restarted(&self) {
        self.agent_restarts.inc();
    }

    /// `ready`: whether tasks can be started.
    pub fn set_ready(&self, ready: bool) {
        self.ready.set(i64::from(ready));
    }

    /// `mode{mode}`: tasks get in this way from now on.
    pub fn set_mode(&self, mode: Mode) {
        for other in [Mode::Injected, Mode::Chroot, Mode::InContainer] {
            self.mode_info
                .get_or_create(&OfMode { mode: other.name() })
                .set(i64::from(other == mode));
        }
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
    use opensandbox_api::task::reason;
    use opensandbox_program::metrics_table;

    use super::*;

    #[test]
    fn every_metric_is_rendered_under_its_documented_name() {
        let metrics = Metrics::default();
        metrics.task_started();
        metrics.task_ended(reason::SUCCEEDED, Some(Duration::from_millis(3)));
        metrics.task_ended(reason::START_FAILED, None);
        metrics.start_failed(StartFailure::NotFound);
        metrics.injected(Mode::Injected, None, Duration::from_millis(3));
        metrics.injected(Mode::Chroot, Some("refused"), Duration::from_millis(3));
        metrics.measured(Measured {
            output_bytes: 10,
            output_dropped_bytes: 4,
            log_dropped_bytes: 2,
            tasks_running: 2,
        });
        metrics.answered("getTasks", 200);
        metrics.auth_rejected("expired");
        metrics.connection_refused();
        metrics.agent_restarted();
        metrics.set_ready(true);
        metrics.set_mode(Mode::Chroot);
        metrics.connections.set(3);
        metrics.streams.set(4);
        let text = metrics.encode().unwrap();
        for line in [
            "task_executor_tasks_started_total 1",
            r#"task_executor_tasks_ended_total{reason="Succeeded"} 1"#,
            r#"task_executor_tasks_ended_total{reason="StartFailed"} 1"#,
            "task_executor_task_duration_seconds_count 1",
            r#"task_executor_start_failures_total{kind="not-found"} 1"#,
            r#"task_executor_injections_total{mode="inject",result="success"} 1"#,
            r#"task_executor_injections_total{mode="chroot",result="refused"} 1"#,
            "task_executor_injection_duration_seconds_count 2",
            "task_executor_output_bytes_total 10",
            "task_executor_output_dropped_bytes_total 4",
            r#"task_executor_http_requests_total{route="getTasks",code="200"} 1"#,
            r#"task_executor_auth_rejections_total{reason="expired"} 1"#,
            "task_executor_connections_refused_total 1",
            "task_executor_agent_restarts_total 1",
            "task_executor_ready 1",
            r#"task_executor_mode{mode="inject"} 0"#,
            r#"task_executor_mode{mode="chroot"} 1"#,
            "task_executor_tasks_running 2",
            "task_executor_connections 3",
            "task_executor_streams 4",
            "task_executor_log_dropped_bytes_total 2",
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
            metrics_table::documented(page, "task_executor_"),
            "left: what the program registers; right: docs/metrics.md"
        );
    }
}
