//! The story of a schedule: one short line per step, so that a failure can be read.

use std::fmt::{self, Debug, Display, Formatter};

use opensandbox_operator::protocol::{FromPool, ToPool};
use opensandbox_operator::session::{Order, Report, State, Work};
use opensandbox_operator::view::{PodView, PoolView, SandboxView};
use opensandbox_operator::write::WriteError;
use opensandbox_operator::{pool, sandbox};

use crate::executor::uid_of;
use crate::replica::Mail;

/// Longest line of what is shown as it is.
const LONGEST: usize = 400;

/// A step in one line.
pub(crate) struct Line<T>(pub(crate) T);

impl Display for Line<&Mail> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Mail::Pool(input) => Line(input).fmt(f),
            Mail::Sandbox(input) => Line(input).fmt(f),
            Mail::Report(_, report) => Line(report).fmt(f),
        }
    }
}

impl Display for Line<&pool::Input> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            pool::Input::Pool(view) => write!(f, "Pool {}", Line(&**view)),
            pool::Input::Pod(view) => write!(f, "Pod {}", Line(&**view)),
            pool::Input::Sandbox(message) => Line(message).fmt(f),
            pool::Input::Created { name, result } => {
                write!(f, "Created {name}: {}", Line(&pod(result)))
            }
            pool::Input::Retired { name, result, .. } => {
                write!(f, "Retired {name}: {}", Line(&pod(result)))
            }
            pool::Input::Restarted { name, result, .. } => {
                write!(f, "Restarted {name}: {}", Line(&pod(result)))
            }
            other => shown(f, other),
        }
    }
}

impl Display for Line<&sandbox::Input> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            sandbox::Input::Object(view) => write!(f, "Object {}", Line(&**view)),
            sandbox::Input::Pool(message) => Line(message).fmt(f),
            sandbox::Input::Pod(view) => write!(f, "Pod {}", Line(&**view)),
            sandbox::Input::Written(Ok(view)) => write!(f, "Written {}", Line(&**view)),
            sandbox::Input::StatusWritten(Ok(view)) => {
                write!(f, "StatusWritten v{}", view.version)
            }
            sandbox::Input::PodCreated { name, result } => {
                write!(f, "PodCreated {name}: {}", Line(&pod(result)))
            }
            sandbox::Input::Report(report) => Line(report).fmt(f),
            other => shown(f, other),
        }
    }
}

impl Display for Line<&pool::Output> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            pool::Output::CreatePod { name, .. } => write!(f, "CreatePod {name}"),
            pool::Output::ToSandbox { sandbox, message } => {
                write!(f, "to {}: {}", sandbox.key.name, Line(message))
            }
            pool::Output::WriteStatus { version, status } => write!(
                f,
                "WriteStatus at v{version}: total {} allocated {} available {}",
                status.total, status.allocated, status.available
            ),
            other => shown(f, other),
        }
    }
}

impl Display for Line<&sandbox::Output> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            sandbox::Output::CreatePod { name, .. } => write!(f, "CreatePod {name}"),
            sandbox::Output::ToPool { pool, message } => {
                write!(f, "to {pool}: {}", Line(message))
            }
            sandbox::Output::Sessions(orders) => {
                write!(f, "Sessions")?;
                orders.iter().try_for_each(|order| Line(order).fmt(f))
            }
            sandbox::Output::WriteStatus(write) => {
                let status = &write.status;
                write!(
                    f,
                    "WriteStatus at v{}: replicas {} ready {} tasks r{} s{} f{} p{} u{}",
                    write.version,
                    status.replicas,
                    status.ready,
                    status.task_running,
                    status.task_succeed,
                    status.task_failed,
                    status.task_pending,
                    status.task_unknown
                )
            }
            other => shown(f, other),
        }
    }
}

impl Display for Line<&ToPool> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            ToPool::Statement(statement) => {
                let returns: Vec<String> = statement
                    .returns
                    .iter()
                    .map(|returned| format!("{}:{}", returned.pod, returned.clean))
                    .collect();
                write!(
                    f,
                    "Statement of {}: holds {:?} returns {returns:?} wants {} of {}",
                    statement.sandbox.key.name,
                    statement.holds,
                    statement.wants,
                    statement.replicas
                )
            }
            ToPool::Answer {
                sandbox,
                grant,
                taken,
            } => write!(f, "Answer of {} to {grant}: {taken}", sandbox.key.name),
            ToPool::Left { sandbox } => write!(f, "Left by {}", sandbox.key.name),
        }
    }
}

impl Display for Line<&FromPool> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            FromPool::Grant { grant, pods } => {
                write!(f, "Grant {grant}:")?;
                pods.iter()
                    .try_for_each(|pod| write!(f, " {}", pod.key.name))
            }
            FromPool::Pod(view) => write!(f, "Pod {}", Line(&**view)),
            other => shown(f, other),
        }
    }
}

impl Display for Line<&Report> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Report { pod_uid, state } = self.0;
        write!(f, "Report of {pod_uid}:")?;
        match state {
            State::Tasks(seen) => {
                if seen.is_empty() {
                    write!(f, " no tasks")?;
                }
                seen.iter().try_for_each(|seen| {
                    let task = &seen.task;
                    let stopping = if task.deletion_timestamp.is_some() {
                        " stopping"
                    } else {
                        ""
                    };
                    write!(f, " {} {:?}{stopping}", uid_of(task), task.state())
                })
            }
            other => write!(f, " {other:?}"),
        }
    }
}

impl Display for Line<&Order> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Order {
            pod, pod_uid, work, ..
        } = self.0;
        match work {
            Work::Look => write!(f, " {pod}({pod_uid}): look"),
            Work::Run(task) => write!(f, " {pod}({pod_uid}): run {}", uid_of(task)),
            Work::Clear => write!(f, " {pod}({pod_uid}): clear"),
        }
    }
}

impl Display for Line<&PodView> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let pod = self.0;
        write!(
            f,
            "{} ({}) v{} {:?}",
            pod.key.name, pod.uid, pod.version, pod.phase
        )?;
        for (word, holds) in [
            ("ready", pod.ready),
            ("deleting", pod.deleting),
            ("retiring", pod.retiring),
            ("evict", pod.evict),
        ] {
            if holds {
                write!(f, " {word}")?;
            }
        }
        match &pod.trouble {
            Some(trouble) => write!(f, " {}", trouble.reason),
            None => Ok(()),
        }
    }
}

impl Display for Line<&PoolView> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let pool = self.0;
        write!(f, "{} ({}) v{}", pool.key.name, pool.uid, pool.version)?;
        match &pool.spec {
            Ok(spec) => write!(f, " {:?} {:?}", spec.capacity_spec, spec.recycle_strategy),
            Err(error) => write!(f, " {error}"),
        }
    }
}

impl Display for Line<&SandboxView> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let view = self.0;
        write!(
            f,
            "{} ({}) v{} g{}",
            view.key.name, view.uid, view.version, view.generation
        )?;
        if view.deleting {
            write!(f, " deleting")?;
        }
        for (word, text) in [
            ("alloc", &view.alloc_status),
            ("release", &view.alloc_release),
            ("released", &view.alloc_released),
            ("fence", &view.fence),
        ] {
            if let Some(text) = text {
                write!(f, " {word} {text}")?;
            }
        }
        write!(f, " finalizers {}", view.finalizers.len())
    }
}

impl Display for Line<&Result<&PodView, &WriteError>> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self.0 {
            Ok(view) => Line(*view).fmt(f),
            Err(error) => Display::fmt(error, f),
        }
    }
}

fn pod(result: &Result<std::sync::Arc<PodView>, WriteError>) -> Result<&PodView, &WriteError> {
    result.as_deref()
}

fn shown(f: &mut Formatter<'_>, what: &impl Debug) -> fmt::Result {
    let text = format!("{what:?}");
    match text.char_indices().nth(LONGEST) {
        Some((end, _)) => write!(f, "{}…", &text[..end]),
        None => f.write_str(&text),
    }
}
