//! What the operator tells Prometheus about itself.
//!
//! In: what actors, writers and the router report. Out: one OpenMetrics text. Every name starts with
//! `opensandbox_operator_`. Labels come from closed sets, save for the gauges of pools, which are
//! removed with their pool. Needs no client.

mod pools;

use std::collections::HashSet;
use std::fmt;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use prometheus_client::encoding::{EncodeLabelSet, text};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Metric, Registry, Unit};

use self::pools::Pools;
use crate::view::ObjectKey;
use crate::{pool, sandbox};

/// Content type of [`Metrics::encode`].
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Different reasons of ended tasks that get a series of their own; executors choose these words.
const REASONS: usize = 50;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Write {
    kind: &'static str,
    verb: &'static str,
    result: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct WriteTime {
    kind: &'static str,
    verb: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Start {
    start: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Source {
    source: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Kind {
    kind: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Category {
    category: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Strategy {
    strategy: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Reason {
    reason: String,
}

type Times<L> = Family<L, Histogram, fn() -> Histogram>;

/// All metrics of the program, and the registry that renders them.
pub struct Metrics {
    registry: Registry,
    pools: Pools,
    allocation: Times<Start>,
    allocated_pods: Family<Start, Counter>,
    recycled_pods: Family<Strategy, Counter>,
    lost_pods: Counter,
    ready: Times<Source>,
    tasks: Family<Reason, Counter>,
    task_reasons: Mutex<HashSet<String>>,
    task_duration: Histogram,
    quarantined: Counter,
    writes: Family<Write, Counter>,
    write_duration: Times<WriteTime>,
    errors: Family<Category, Counter>,
    panics: Family<Kind, Counter>,
    /// `events_dropped_total`: events that were not published, because too many waited or the API
    /// server refused them.
    pub events_dropped: Counter,
    /// `mailbox_messages`: messages sent to actors and the router that are not handled yet.
    pub mailbox: Gauge,
    /// `writes_in_flight`: writes that wait for their turn or for an answer.
    pub writes_in_flight: Gauge,
    /// `leader`: 1 while this replica leads.
    pub leader: Gauge,
    /// `actors{kind}`.
    actors: Family<Kind, Gauge>,
}

impl fmt::Debug for Metrics {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Metrics").finish_non_exhaustive()
    }
}

/// Makes and registers a metric in one step, so that none can be made and forgotten.
struct Register<'a>(&'a mut Registry);

impl Register<'_> {
    fn add<M: Metric + Clone + Default>(&mut self, name: &str, help: &str) -> M {
        self.with(name, help, M::default())
    }

    fn with<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0.register(name, help, metric.clone());
        metric
    }

    fn seconds<M: Metric + Clone>(&mut self, name: &str, help: &str, metric: M) -> M {
        self.0
            .register_with_unit(name, help, Unit::Seconds, metric.clone());
        metric
    }
}

/// 1 ms doubled 16 times is a minute.
fn latency() -> Histogram {
    Histogram::new(exponential_buckets(0.001, 2.0, 17))
}

/// 100 ms doubled 17 times is almost four hours.
fn duration() -> Histogram {
    Histogram::new(exponential_buckets(0.1, 2.0, 18))
}

fn latencies<L: Clone + std::hash::Hash + Eq>() -> Times<L> {
    let constructor: fn() -> Histogram = latency;
    Family::new_with_constructor(constructor)
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("opensandbox_operator");
        let mut register = Register(&mut registry);
        Self {
            pools: Pools::new(&mut register),
            allocation: register.seconds(
                "allocation_latency",
                "From a demand known to a grant taken; start=\"warm\" where idle pods met it at once",
                latencies(),
            ),
            allocated_pods: register.add("allocated_pods", "Pods given to sandboxes"),
            recycled_pods: register.add("recycled_pods", "Returned pods by what became of them"),
            lost_pods: register.add("lost_pods", "Pods lost while a sandbox held them"),
            ready: register.seconds(
                "sandbox_ready_latency",
                "From the creation of a BatchSandbox until all its pods are ready",
                latencies(),
            ),
            tasks: register.add("tasks_ended", "Tasks ended, by reason"),
            task_reasons: Mutex::default(),
            task_duration: register.seconds("task_duration", "How long tasks ran", duration()),
            quarantined: register.add(
                "objects_quarantined",
                "Objects set aside because they cannot be read",
            ),
            writes: register.add("api_writes", "Requests that change something, by their result"),
            write_duration: register.seconds(
                "api_write_duration",
                "From a write sent to its answer",
                latencies(),
            ),
            errors: register.add(
                "reconcile_errors",
                "Failures by category: those of writes, and broken watches",
            ),
            panics: register.add("actor_panics", "Bugs caught in an actor; please report any"),
            events_dropped: register.add("events_dropped", "Events that were not published"),
            mailbox: register.add("mailbox_messages", "Messages that wait to be handled"),
            writes_in_flight: register.add("writes_in_flight", "Writes without an answer yet"),
            leader: register.add("leader", "1 while this replica leads"),
            actors: register.add("actors", "Objects that an actor looks after"),
            registry,
        }
    }
}

impl Metrics {
    /// What a pool says.
    pub fn pool_note(&self, key: &ObjectKey, note: &pool::Note) {
        match *note {
            pool::Note::Allocated {
                pods,
                waited_millis,
                warm,
            } => {
                let start = Start {
                    start: if warm { "warm" } else { "waiting" },
                };
                self.allocation
                    .get_or_create(&start)
                    .observe(seconds(waited_millis));
                self.allocated_pods
                    .get_or_create(&start)
                    .inc_by(pods.into());
            }
            pool::Note::Recycled(strategy) => {
                self.recycled_pods
                    .get_or_create(&Strategy { strategy })
                    .inc();
            }
            pool::Note::Lost => {
                self.lost_pods.inc();
            }
            pool::Note::Census {
                total,
                allocated,
                available,
                updated,
                terminating,
                waiting,
            } => self.pools.count(
                key,
                [total, allocated, available, updated, terminating, waiting],
            ),
            pool::Note::Asked {
                capacity,
                injection,
            } => self.pools.asked(key, capacity, injection),
        }
    }

    /// There is no such pool any more.
    pub fn forget_pool(&self, key: &ObjectKey) {
        self.pools.forget(key);
    }

    /// What a sandbox says.
    pub fn sandbox_note(&self, note: &sandbox::Note) {
        match note {
            sandbox::Note::Ready { millis, pooled } => {
                let source = Source {
                    source: if *pooled { "pool" } else { "template" },
                };
                self.ready.get_or_create(&source).observe(seconds(*millis));
            }
            sandbox::Note::TaskEnded { reason, millis } => {
                let reason = self.task_reason(reason);
                self.tasks.get_or_create(&Reason { reason }).inc();
                if let Some(millis) = millis {
                    self.task_duration.observe(seconds(*millis));
                }
            }
            sandbox::Note::Quarantined => {
                self.quarantined.inc();
            }
        }
    }

    fn task_reason(&self, reason: &str) -> String {
        let mut known = self
            .task_reasons
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let word = !reason.is_empty()
            && reason.len() <= 64
            && reason.chars().all(|letter| letter.is_ascii_alphanumeric());
        if word && (known.contains(reason) || known.len() < REASONS) {
            known.insert(reason.to_owned());
            reason.to_owned()
        } else {
            "Other".to_owned()
        }
    }

    /// `api_writes_total`, its duration, and the failure if it is one.
    pub fn written(
        &self,
        kind: &'static str,
        verb: &'static str,
        result: &'static str,
        took: Option<Duration>,
    ) {
        self.writes
            .get_or_create(&Write { kind, verb, result })
            .inc();
        if let Some(took) = took {
            self.write_duration
                .get_or_create(&WriteTime { kind, verb })
                .observe(took.as_secs_f64());
        }
    }

    /// `reconcile_errors_total{category}`.
    pub fn failed(&self, category: &'static str) {
        self.errors.get_or_create(&Category { category }).inc();
    }

    /// `actor_panics_total{kind}`.
    pub fn panicked(&self, kind: &'static str) {
        self.panics.get_or_create(&Kind { kind }).inc();
    }

    /// `actors{kind}`: one more, or one less.
    pub fn actor(&self, kind: &'static str, change: i64) {
        self.actors.get_or_create(&Kind { kind }).inc_by(change);
    }

    /// All metrics as OpenMetrics text.
    ///
    /// # Errors
    /// When a metric cannot be formatted; none of those defined here does that.
    pub fn encode(&self) -> Result<String, fmt::Error> {
        let mut text = String::with_capacity(16 * 1024);
        text::encode(&mut text, &self.registry)?;
        Ok(text)
    }
}

fn seconds(millis: u64) -> f64 {
    Duration::from_millis(millis).as_secs_f64()
}

#[cfg(test)]
mod tests {
    use opensandbox_api::v1alpha1::CapacitySpec;
    use opensandbox_program::metrics_table;

    use super::*;

    #[test]
    fn every_metric_is_rendered_under_its_documented_name_and_pools_are_forgotten() {
        let metrics = Metrics::default();
        let key = ObjectKey::new("ns", "p");
        metrics.pool_note(
            &key,
            &pool::Note::Allocated {
                pods: 3,
                waited_millis: 1,
                warm: true,
            },
        );
        metrics.pool_note(&key, &pool::Note::Recycled("Noop"));
        metrics.pool_note(&key, &pool::Note::Lost);
        metrics.pool_note(
            &key,
            &pool::Note::Census {
                total: 7,
                allocated: 2,
                available: 4,
                updated: 5,
                terminating: 1,
                waiting: 9,
            },
        );
        metrics.pool_note(
            &key,
            &pool::Note::Asked {
                capacity: Some(CapacitySpec {
                    buffer_min: 1,
                    buffer_max: 2,
                    pool_min: 3,
                    pool_max: 4,
                }),
                injection: Some("outdated"),
            },
        );
        metrics.sandbox_note(&sandbox::Note::Ready {
            millis: 12,
            pooled: true,
        });
        metrics.sandbox_note(&sandbox::Note::TaskEnded {
            reason: "OOMKilled".to_owned(),
            millis: Some(100),
        });
        metrics.sandbox_note(&sandbox::Note::Quarantined);
        metrics.written("pods", "create", "ok", Some(Duration::from_millis(3)));
        metrics.failed("conflict");
        metrics.panicked("pool");
        metrics.actor("pool", 2);
        metrics.events_dropped.inc();
        metrics.mailbox.inc();
        metrics.writes_in_flight.inc();
        metrics.leader.set(1);
        let text = metrics.encode().unwrap();
        for line in [
            r#"opensandbox_operator_pool_pods{namespace="ns",pool="p",state="available"} 4"#,
            r#"opensandbox_operator_pool_pods{namespace="ns",pool="p",state="waiting"} 9"#,
            r#"opensandbox_operator_pool_capacity_pods{namespace="ns",pool="p",bound="bufferMin"} 1"#,
            r#"opensandbox_operator_pool_capacity_pods{namespace="ns",pool="p",bound="poolMax"} 4"#,
            r#"opensandbox_operator_pool_injection{namespace="ns",pool="p",state="outdated"} 1"#,
            r#"opensandbox_operator_pool_injection{namespace="ns",pool="p",state="current"} 0"#,
            r#"opensandbox_operator_allocation_latency_seconds_bucket{le="0.001",start="warm"} 1"#,
            r#"opensandbox_operator_allocated_pods_total{start="warm"} 3"#,
            r#"opensandbox_operator_recycled_pods_total{strategy="Noop"} 1"#,
            "opensandbox_operator_lost_pods_total 1",
            r#"opensandbox_operator_sandbox_ready_latency_seconds_count{source="pool"} 1"#,
            r#"opensandbox_operator_tasks_ended_total{reason="OOMKilled"} 1"#,
            "opensandbox_operator_task_duration_seconds_count 1",
            "opensandbox_operator_objects_quarantined_total 1",
            r#"opensandbox_operator_api_writes_total{kind="pods",verb="create",result="ok"} 1"#,
            r#"opensandbox_operator_api_write_duration_seconds_count{kind="pods",verb="create"} 1"#,
            r#"opensandbox_operator_reconcile_errors_total{category="conflict"} 1"#,
            r#"opensandbox_operator_actor_panics_total{kind="pool"} 1"#,
            "opensandbox_operator_events_dropped_total 1",
            "opensandbox_operator_mailbox_messages 1",
            "opensandbox_operator_writes_in_flight 1",
            "opensandbox_operator_leader 1",
            r#"opensandbox_operator_actors{kind="pool"} 2"#,
        ] {
            assert!(
                text.lines().any(|have| have == line),
                "{line} is not in\n{text}"
            );
        }
        let page = include_str!("../../../../docs/metrics.md");
        assert_eq!(
            metrics_table::registered(&text),
            metrics_table::documented(page, "opensandbox_operator_"),
            "left: what the program registers; right: docs/metrics.md"
        );
        metrics.forget_pool(&key);
        assert!(!metrics.encode().unwrap().contains(r#"pool="p""#));
    }

    #[test]
    fn words_of_executors_do_not_make_series_without_bound() {
        let metrics = Metrics::default();
        for number in 0..1000 {
            metrics.sandbox_note(&sandbox::Note::TaskEnded {
                reason: format!("Reason{number}"),
                millis: None,
            });
        }
        metrics.sandbox_note(&sandbox::Note::TaskEnded {
            reason: "a\"} 1\n".to_owned(),
            millis: None,
        });
        let text = metrics.encode().unwrap();
        let series = text
            .lines()
            .filter(|line| line.starts_with("opensandbox_operator_tasks_ended_total"));
        assert_eq!(series.count(), REASONS + 1);
        assert!(text.contains("{reason=\"Other\"} 951"));
    }
}
