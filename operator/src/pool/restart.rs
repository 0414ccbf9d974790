//! Recycling by restart: what the Pool's annotation asks for, and how far a pod has come.
//!
//! Pure: a pod's containers and its record in, a verdict out. The formats are upstream's, so that a
//! cluster can switch over; the `id` of a record is the UID of the sandbox that gave the pod back, not
//! its name, which another sandbox may carry later.

use std::collections::BTreeMap;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use opensandbox_api::labels;
use serde::{Deserialize, Serialize};

use super::backoff::{after, has_passed};
use crate::view::PodView;

/// Most containers that are looked at, which bounds the record on the pod.
const MOST_CONTAINERS: usize = 64;
/// Longest text of the Pool's annotation.
const LONGEST_CONFIG: usize = 8 * 1024;
/// Shortest and longest time between two tries.
const INTERVAL: std::ops::RangeInclusive<Duration> =
    Duration::from_secs(1)..=Duration::from_hours(1);
/// Most tries.
const MOST_RETRIES: u32 = 100;

/// How the containers of a pod are restarted; upstream's defaults where the annotation is silent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Config {
    pub(super) blacklist: Vec<String>,
    pub(super) retry_interval: SignedDuration,
    pub(super) max_retries: u32,
    pub(super) command: Vec<String>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            blacklist: Vec::new(),
            retry_interval: SignedDuration::from_secs(30),
            max_retries: 3,
            command: vec!["kill".to_owned(), "1".to_owned()],
        }
    }
}

/// The annotation as users write it.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Written {
    #[serde(default)]
    blacklist: Option<Vec<String>>,
    #[serde(default)]
    retry_interval: Option<String>,
    #[serde(default)]
    max_retries: Option<u32>,
    #[serde(default)]
    restart_command: Option<Vec<String>>,
}

impl Config {
    /// Reads the Pool's annotation [`labels::RESTART_CONFIG`].
    ///
    /// # Errors
    ///
    /// What is wrong with it and what to do, in a sentence.
    pub(super) fn read(annotation: &str) -> Result<Self, String> {
        let wrong = |what: String| {
            format!(
                "metadata.annotations[{}]: {what}; the defaults are used until it is mended",
                labels::RESTART_CONFIG
            )
        };
        if annotation.len() > LONGEST_CONFIG {
            return Err(wrong(format!(
                "has {} bytes, at most {LONGEST_CONFIG} are read",
                annotation.len()
            )));
        }
        let written: Written = serde_json::from_str(annotation).map_err(|_| {
            wrong(
                r#"must be JSON such as {"blacklist":["c"],"retryInterval":"30s","maxRetries":3,"restartCommand":["kill","1"]}"#
                    .to_owned(),
            )
        })?;
        let mut config = Self::default();
        if let Some(text) = written.retry_interval {
            let interval = text
                .parse::<kube::core::Duration>()
                .ok()
                .filter(|interval| !interval.is_negative())
                .map(Duration::from)
                .filter(|interval| INTERVAL.contains(interval))
                .and_then(|interval| SignedDuration::try_from(interval).ok());
            config.retry_interval = interval.ok_or_else(|| {
                wrong("retryInterval must be a duration from 1s to 1h, such as 30s".to_owned())
            })?;
        }
        if let Some(retries) = written.max_retries {
            if retries > MOST_RETRIES {
                return Err(wrong(format!(
                    "maxRetries is {retries}, at most {MOST_RETRIES} are allowed"
                )));
            }
            config.max_retries = retries;
        }
        if let Some(command) = written.restart_command {
            if command.first().is_none_or(String::is_empty) {
                return Err(wrong("restartCommand must name a program".to_owned()));
            }
            config.command = command;
        }
        config.blacklist = written.blacklist.unwrap_or_default();
        Ok(config)
    }
}

/// Containers of a pod that run and are to be restarted, with their IDs.
fn to_be_restarted(pod: &PodView, config: &Config) -> BTreeMap<String, String> {
    pod.containers
        .iter()
        .filter(|container| container.running && !config.blacklist.contains(&container.name))
        .filter_map(|container| Some((container.name.clone(), container.id.clone()?)))
        .take(MOST_CONTAINERS)
        .collect()
}

/// How far the restart of one pod has come: the annotation [`labels::RESTART_RECORD`] of the pod.
///
/// It is written to be seen, and never read back: after a restart of the operator the containers are
/// restarted anew, because a record may stem from an earlier time that the same sandbox held the pod.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Record {
    /// UID of the sandbox that gave the pod back.
    pub(super) id: String,
    /// When the recycling began.
    pub(super) start_time: Time,
    /// The containers to be restarted, each with the ID that it had then.
    pub(super) containers: BTreeMap<String, String>,
    /// When the command was run last.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) last_retry_time: Option<Time>,
    /// How often it was run.
    pub(super) retry_count: u32,
}

/// What to do with a pod that is being restarted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Every container is another one than before, and runs.
    Done,
    /// Look again when the pod changes, and at this time.
    Wait(Timestamp),
    /// Run the command in these containers. Before the record is confirmed it is made anew from the pod as
    /// it is, and the command is run in all that it then names.
    Try(Vec<String>),
    /// It cannot be restarted: the pod must be deleted.
    GiveUp,
}

impl Record {
    /// The record of a pod that was just given back.
    pub(super) fn begin(sandbox_uid: &str, pod: &PodView, config: &Config, now: Timestamp) -> Self {
        Self {
            id: sandbox_uid.to_owned(),
            start_time: Time(now),
            containers: to_be_restarted(pod, config),
            last_retry_time: None,
            retry_count: 0,
        }
    }

    /// Starts from the containers that the pod has now. Until the record is written for the very version
    /// of the pod that it was made from, a container may have ended before the pod was given back.
    pub(super) fn rebase(&mut self, pod: &PodView, config: &Config) {
        self.containers = to_be_restarted(pod, config);
    }

    /// The annotation's text.
    pub(super) fn to_annotation(&self) -> String {
        serde_json::to_string(self).expect("a record is plain data with string keys")
    }

    /// Containers that have not been restarted yet, or do not run yet.
    fn remaining(&self, pod: &PodView) -> Vec<String> {
        let restarted = |name: &str, before: &str| {
            pod.containers.iter().any(|container| {
                container.name == name
                    && container.running
                    && container.id.as_deref().is_some_and(|id| id != before)
            })
        };
        self.containers
            .iter()
            .filter(|(name, before)| !restarted(name, before))
            .map(|(name, _)| name.clone())
            .collect()
    }

    /// What to do now.
    ///
    /// `confirmed` says whether the record was written with the version of the pod as precondition. Before,
    /// its IDs may be those of containers that ended before the pod was given back.
    pub(super) fn verdict(
        &self,
        pod: &PodView,
        config: &Config,
        confirmed: bool,
        now: Timestamp,
    ) -> Verdict {
        let remaining = self.remaining(pod);
        let nothing_to_restart = pod
            .containers
            .iter()
            .all(|container| config.blacklist.contains(&container.name));
        let certain = confirmed || nothing_to_restart;
        if remaining.is_empty() && certain {
            return Verdict::Done;
        }
        if let Some(Time(last)) = self.last_retry_time
            && !has_passed(last, config.retry_interval, now)
        {
            return Verdict::Wait(after(last, config.retry_interval));
        }
        if self.retry_count >= config.max_retries {
            Verdict::GiveUp
        } else {
            Verdict::Try(remaining)
        }
    }

    /// Notes a try.
    pub(super) fn tried(&mut self, now: Timestamp) {
        self.last_retry_time = Some(Time(now));
        self.retry_count = self.retry_count.saturating_add(1);
    }
}
