//! The executor runs in the sandbox container: its agent is a plain child.

use std::path::Path;
use std::process::Stdio;

use super::{Agent, LaunchError, Mode, start};
use crate::agent::oom::Kills;
use crate::pod::Pod;
use crate::pod::proc::{Environment, Proc};
use crate::pod::target::{ContainerRef, NoTarget};

pub(super) fn start(
    program: &Path,
    proc: &Proc,
    pod: &Pod,
    wanted: Option<&ContainerRef>,
) -> Result<Agent, LaunchError> {
    // Where our ID is unknown there is nothing to compare: no other container can be meant, since no
    // order for one can reach us but by mistake.
    if let (Some(wanted), Some(own)) = (wanted, &pod.own.container_id)
        && !wanted.names(own)
    {
        return Err(LaunchError::NoTarget(NoTarget {
            problem: format!("the task is for container {wanted}"),
            seen: format!("this executor runs tasks in its own container {own} only"),
            remedy: "send it to the executor of that container".to_owned(),
            ambiguous: true,
        }));
    }
    let Some(Environment(environment)) = proc.environment(pod.own.pid) else {
        return Err(LaunchError::Environment(pod.own.pid));
    };
    let started = start::agent(program, &[], Stdio::null()).map_err(LaunchError::Start)?;
    Ok(Agent {
        mode: Mode::InContainer,
        pid: started.pid,
        pidfd: started.pidfd,
        control: started.control,
        found: false,
        environment,
        container_id: pod.own.container_id.clone(),
        kills: Kills::open(),
        target: None,
        remark: None,
    })
}
