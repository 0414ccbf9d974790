//! Which container tasks run in. A pure function over a snapshot of the pod; what it cannot decide it
//! reports with all it saw, and never guesses.

use std::fmt;

use super::cgroup::is_hexadecimal;
use super::{Container, MARKER_ENV, Main, Pod};

/// Fewest digits by which a container may be named.
const SHORTEST_ID: usize = 12;

/// A container named by its ID, or by the first digits of it: `containerd://0123…`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct ContainerRef(String);

impl ContainerRef {
    /// Reads what `status.containerStatuses[].containerID` of a pod holds, with or without the scheme.
    ///
    /// # Errors
    ///
    /// It is no ID.
    pub fn parse(text: &str) -> Result<Self, BadContainerRef> {
        let id = text.rsplit_once("://").map_or(text, |(_, id)| id);
        let fits = (SHORTEST_ID..=64).contains(&id.len()) && id.bytes().all(is_hexadecimal);
        if fits {
            Ok(Self(id.to_owned()))
        } else {
            Err(BadContainerRef(text.chars().take(100).collect()))
        }
    }

    /// Whether a whole ID is the one named.
    pub fn names(&self, id: &str) -> bool {
        id.starts_with(&self.0)
    }
}

impl fmt::Display for ContainerRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What was given is no container ID.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "container ID {0:?} is not {SHORTEST_ID} to 64 lower-case hexadecimal digits, optionally after RUNTIME://; give status.containerStatuses[].containerID of the pod"
)]
pub struct BadContainerRef(String);

/// The container that tasks run in.
#[derive(Clone, Copy, Debug)]
pub struct Choice<'a> {
    /// Which.
    pub container: &'a Container,
    /// Its main process.
    pub main: &'a Main,
    /// By what it was recognised.
    pub reason: Reason,
}

/// By what a container was recognised.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// The task names it by ID.
    Id,
    /// Its main process alone has the marker variable.
    Marker,
    /// It has the name of the main container.
    Name,
    /// There is no other.
    Only,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Id => f.write_str("the task names it by ID"),
            Self::Marker => write!(f, "its main process has {MARKER_ENV}"),
            Self::Name => f.write_str("it has the name of the main container"),
            Self::Only => f.write_str("it is the only other container"),
        }
    }
}

/// No container, or more than one that could be it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{problem}; {seen}; {remedy}")]
pub struct NoTarget {
    /// What is wrong.
    pub problem: String,
    /// The containers seen.
    pub seen: String,
    /// What to do.
    pub remedy: String,
    /// More than one could be it: time alone does not change that.
    pub ambiguous: bool,
}

impl NoTarget {
    fn ambiguous(self) -> Self {
        Self {
            ambiguous: true,
            ..self
        }
    }
}

/// Chooses: the container that is named by ID; else the one whose main process has the marker; else the
/// one with the main container's name; else the only other one, unless its name is known to be wrong.
///
/// # Errors
///
/// None of these names exactly one container that runs.
pub fn choose<'a>(
    pod: &'a Pod,
    main_container_name: Option<&str>,
    wanted: Option<&ContainerRef>,
) -> Result<Choice<'a>, NoTarget> {
    if let Some(wanted) = wanted {
        return by_id(pod, wanted);
    }
    let running: Vec<Choice<'a>> = pod
        .containers
        .iter()
        .filter_map(|container| {
            let main = container.main.as_ref()?;
            Some(Choice {
                container,
                main,
                reason: Reason::Only,
            })
        })
        .collect();
    let named: Vec<Choice<'a>> = running
        .iter()
        .filter(|choice| {
            main_container_name.is_some() && choice.container.name.as_deref() == main_container_name
        })
        .copied()
        .collect();
    let marked: Vec<Choice<'a>> = running
        .iter()
        .filter(|choice| is_marked(choice.main, main_container_name))
        .copied()
        .collect();

    match (marked.as_slice(), named.as_slice()) {
        ([one], _) => return Ok(with(*one, Reason::Marker)),
        ([], [one]) => return Ok(with(*one, Reason::Name)),
        ([_, _, ..], [one]) if is_marked(one.main, main_container_name) => {
            return Ok(with(*one, Reason::Name));
        }
        ([_, _, ..], _) => {
            return Err(no_target(
                pod,
                format!("{MARKER_ENV} is set in more than one container"),
                "set it in the sandbox container only, or name the container with --main-container-name",
            )
            .ambiguous());
        }
        ([], [_, _, ..]) => {
            return Err(no_target(
                pod,
                format!(
                    "two containers are named {:?}",
                    main_container_name.unwrap_or_default()
                ),
                "the older one is ending: try again",
            ));
        }
        ([], []) => {}
    }
    let possible: Vec<Choice<'a>> = running
        .into_iter()
        .filter(|choice| main_container_name.is_none() || choice.container.name.is_none())
        .collect();
    match (possible.as_slice(), main_container_name) {
        ([one], _) => Ok(*one),
        ([], Some(name)) => Err(no_target(
            pod,
            format!("no container named {name:?} runs in this pod"),
            "wait until it has started, or correct --main-container-name (MAIN_CONTAINER_NAME)",
        )),
        ([], None) => Err(no_target(
            pod,
            "no other container runs in this pod".to_owned(),
            "wait until it has started; the pod needs shareProcessNamespace: true",
        )),
        ([_, _, ..], _) => Err(no_target(
            pod,
            "more than one container could be the sandbox".to_owned(),
            &format!(
                "name it with --main-container-name (MAIN_CONTAINER_NAME), or set {MARKER_ENV} in it"
            ),
        )
        .ambiguous()),
    }
}

fn with(choice: Choice<'_>, reason: Reason) -> Choice<'_> {
    Choice { reason, ..choice }
}

fn by_id<'a>(pod: &'a Pod, wanted: &ContainerRef) -> Result<Choice<'a>, NoTarget> {
    if pod
        .own
        .container_id
        .as_deref()
        .is_some_and(|id| wanted.names(id))
    {
        return Err(no_target(
            pod,
            format!("container {wanted} is the executor's own"),
            "give the ID of the sandbox container, or run the executor in it with --mode=in-container",
        ));
    }
    let mut matching = pod
        .containers
        .iter()
        .filter(|container| wanted.names(&container.id));
    let (Some(container), None) = (matching.next(), matching.next()) else {
        let several = pod
            .containers
            .iter()
            .any(|container| wanted.names(&container.id));
        let (problem, remedy) = if several {
            (
                "begins the ID of more than one container",
                "give more of its digits",
            )
        } else {
            (
                "is not among the running containers of this pod",
                "it may have restarted: look it up again",
            )
        };
        return Err(no_target(
            pod,
            format!("container ID {wanted} {problem}"),
            remedy,
        ));
    };
    let Some(main) = &container.main else {
        return Err(no_target(
            pod,
            format!("the main process of container {wanted} has ended"),
            "it is restarting: look up its new ID",
        ));
    };
    Ok(Choice {
        container,
        main,
        reason: Reason::Id,
    })
}

/// Only the main process counts: its children inherit the variable, and so do theirs.
fn is_marked(main: &Main, main_container_name: Option<&str>) -> bool {
    let value = main
        .environment
        .as_ref()
        .and_then(|all| all.get(MARKER_ENV));
    fits_marker(value, main_container_name)
}

/// Whether this value of the marker means the main container.
pub fn fits_marker(value: Option<&[u8]>, main_container_name: Option<&str>) -> bool {
    value.is_some_and(|value| main_container_name.is_none_or(|name| value == name.as_bytes()))
}

fn no_target(pod: &Pod, problem: String, remedy: &str) -> NoTarget {
    let descriptions: Vec<String> = pod.containers.iter().map(describe).collect();
    let seen = if descriptions.is_empty() {
        "no other container can be seen".to_owned()
    } else {
        format!("seen: {}", descriptions.join(", "))
    };
    NoTarget {
        problem,
        seen,
        remedy: remedy.to_owned(),
        ambiguous: false,
    }
}

/// A container in a few words.
pub fn describe(container: &Container) -> String {
    let name = container.name.as_deref().unwrap_or("(name unknown)");
    let id: String = container.id.chars().take(SHORTEST_ID).collect();
    match &container.main {
        Some(main) => format!("{name} {id} (main process {})", main.pid),
        None => format!("{name} {id} (main process ended)"),
    }
}

#[cfg(test)]
mod tests;
