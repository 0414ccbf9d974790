//! What this pod is made of, read from `/proc`: its UID, its containers, their processes.
//!
//! Everything here is a snapshot: processes vanish while it is taken, and containers restart after it.
//! Whoever acts on a process pins it with its start time.

pub mod cgroup;
pub mod mounts;
pub mod proc;
pub mod status;
pub mod target;

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use cgroup::{Place, PodOf};
use mounts::Mounts;
use proc::{Environment, Proc, Stat};

/// Upstream's marker: its value is the name of the main container.
pub const MARKER_ENV: &str = "SANDBOX_MAIN_CONTAINER";

/// The pod as this process sees it.
#[derive(Clone, Debug)]
pub struct Pod {
    /// Its UID: what was configured, else what was seen.
    pub uid: Option<String>,
    /// The UID that mounts and cgroups tell, to compare.
    pub seen_uid: Option<String>,
    /// The container this process is in.
    pub own: Own,
    /// The other containers of the pod of which processes can be seen, without the pause container,
    /// ordered by the start of their main processes.
    pub containers: Vec<Container>,
    /// Processes outside our container can be seen: the pod's PID namespace is shared, or it is the
    /// node's.
    pub shared_pid_namespace: bool,
}

/// The container this process is in.
#[derive(Clone, Debug)]
pub struct Own {
    /// This process.
    pub pid: i32,
    /// Unknown where the container has a cgroup namespace, and outside any container.
    pub container_id: Option<String>,
    /// Its name in the pod.
    pub name: Option<String>,
    /// Value of [`MARKER_ENV`] here: set where this is the sandbox container itself.
    pub marker: Option<Vec<u8>>,
}

/// A container of this pod.
#[derive(Clone, Debug)]
pub struct Container {
    /// 64 hexadecimal digits.
    pub id: String,
    /// Its name in the pod; unknown where its mounts cannot be read.
    pub name: Option<String>,
    /// The process that the container was started with. `None` once that has ended: what is left of a
    /// container that restarted, say.
    pub main: Option<Main>,
    /// All its processes.
    pub processes: Vec<Stat>,
}

/// The process that a container was started with.
#[derive(Clone, Debug)]
pub struct Main {
    /// Process.
    pub pid: i32,
    /// Pins it, see [`Stat::start_time`].
    pub start_time: u64,
    /// Its parent; 0 where that is outside the PID namespace.
    pub parent: i32,
    /// Effective user.
    pub uid: Option<u32>,
    /// What it was started with; unknown where it cannot be read.
    pub environment: Option<Environment>,
}

impl Pod {
    /// Looks around. `configured_uid` is what the pod's specification says its UID is.
    ///
    /// # Errors
    ///
    /// `/proc` is not mounted, or this process cannot read its own entries there.
    pub fn read(proc: &Proc, configured_uid: Option<&str>) -> io::Result<Self> {
        let pid = proc.own_pid()?;
        let own_cgroup = proc
            .cgroup(pid)
            .ok_or_else(|| unreadable(proc, pid, "cgroup"))?;
        let own_place = cgroup::place(&own_cgroup);
        let own_mounts = proc
            .mountinfo(pid)
            .map_or_else(Mounts::default, |text| Mounts::read(&text));
        let own_uid = match &own_place.pod {
            PodOf::Uid(uid) => Some(uid.clone()),
            PodOf::Same | PodOf::Unknown => None,
        };
        let seen_uid = own_mounts.pod_uid.clone().or(own_uid);
        let uid = configured_uid
            .map(str::to_owned)
            .or_else(|| seen_uid.clone());

        let view = View {
            proc,
            own: &own_place,
            // What is seen cannot be mistyped, so it decides who belongs to the pod.
            uid: seen_uid.as_deref().or(configured_uid),
            in_pod: seen_uid.is_some(),
        };
        let mut groups: BTreeMap<String, Group> = BTreeMap::new();
        let mut init_is_own = true;
        for pid in proc.pids()? {
            let (Some(stat), Some(text)) = (proc.stat(pid), proc.cgroup(pid)) else {
                continue;
            };
            let place = cgroup::place(&text);
            let own = view.is_own(&place);
            if pid == 1 {
                init_is_own = own;
            }
            if let Some(id) = place.container_id.filter(|_| !own) {
                let group = groups.entry(id).or_insert_with(|| Group {
                    pod: place.pod,
                    processes: Vec::new(),
                });
                group.processes.push(stat);
            }
        }

        let pause = pause_container(&groups, own_mounts.pause_id.as_deref());
        let adopters = pause
            .and_then(|id| groups.get(id))
            .map_or_else(BTreeSet::new, |group| {
                group.processes.iter().map(|p| p.pid).collect()
            });
        let mut containers: Vec<Container> = groups
            .iter()
            .filter(|(id, _)| Some(id.as_str()) != pause)
            .filter_map(|(id, group)| view.container(id, group, &adopters))
            .collect();
        containers.sort_by_key(|container| container.main.as_ref().map(|m| (m.start_time, m.pid)));
        let marker = proc
            .environment(pid)
            .and_then(|all| all.get(MARKER_ENV).map(<[u8]>::to_vec));
        Ok(Self {
            uid,
            seen_uid,
            own: Own {
                pid,
                container_id: own_place.container_id.clone(),
                name: own_mounts.container_name,
                marker,
            },
            shared_pid_namespace: !containers.is_empty() || !init_is_own,
            containers,
        })
    }
}

/// Processes with one container ID.
struct Group {
    pod: PodOf,
    processes: Vec<Stat>,
}

/// From where the other processes are looked at.
struct View<'a> {
    proc: &'a Proc,
    own: &'a Place,
    uid: Option<&'a str>,
    /// We are in a container of a pod for certain.
    in_pod: bool,
}

impl View<'_> {
    fn is_own(&self, place: &Place) -> bool {
        match &self.own.container_id {
            Some(id) => place.container_id.as_ref() == Some(id),
            // Our cgroup is the root of what we see: what lies below it is ours.
            None => !place.outside && !matches!(place.pod, PodOf::Uid(_)) && self.below_own(place),
        }
    }

    /// Without a cgroup namespace and outside any container, a path with an ID is another's. With one,
    /// only a container of a container of ours has such a path. The two cannot be told apart; the
    /// first is how this program is run by hand, the second is a container engine in the sandbox.
    fn below_own(&self, place: &Place) -> bool {
        place.container_id.is_none() || self.in_pod
    }

    fn container(&self, id: &str, group: &Group, adopters: &BTreeSet<i32>) -> Option<Container> {
        let main = main_process(&group.processes, adopters);
        let mounts = main
            .and_then(|main| self.proc.mountinfo(main.pid))
            .map_or_else(Mounts::default, |text| Mounts::read(&text));
        let belongs = match &group.pod {
            PodOf::Same => true,
            PodOf::Uid(uid) => self.uid.is_none_or(|own| own == uid),
            // Where cgroups show our pod they show every pod.
            PodOf::Unknown if matches!(self.own.pod, PodOf::Uid(_)) => false,
            PodOf::Unknown => match (&mounts.pod_uid, self.uid) {
                (Some(uid), Some(own)) => uid == own,
                _ => true,
            },
        };
        belongs.then(|| Container {
            id: id.to_owned(),
            name: mounts.container_name,
            main: main.map(|main| Main {
                pid: main.pid,
                start_time: main.start_time,
                parent: main.parent,
                uid: self
                    .proc
                    .status(main.pid)
                    .map(|status| status.uids.effective),
                environment: self.proc.environment(main.pid),
            }),
            processes: group.processes.clone(),
        })
    }
}

/// The runtime's mounts tell it; else it is who has pid 1. An ephemeral container that shares the PID
/// namespace of one container sees that one as pid 1, but not the pause container, whose ID it knows.
fn pause_container<'a>(
    groups: &'a BTreeMap<String, Group>,
    pause_id: Option<&'a str>,
) -> Option<&'a str> {
    match pause_id {
        Some(id) => groups.get_key_value(id).map(|(id, _)| id.as_str()),
        None => groups
            .iter()
            .find(|(_, group)| group.processes.iter().any(|process| process.pid == 1))
            .map(|(id, _)| id.as_str()),
    }
}

/// The oldest process that came into the container from outside. `kubectl exec` and injected agents do
/// too, but later. An orphan, whose parent became the pause process, did not: where only such are left,
/// or the oldest has ended, there is no main process.
fn main_process(processes: &[Stat], adopters: &BTreeSet<i32>) -> Option<Stat> {
    let members: BTreeSet<i32> = processes.iter().map(|process| process.pid).collect();
    processes
        .iter()
        .filter(|process| !members.contains(&process.parent) && !adopters.contains(&process.parent))
        .min_by_key(|process| (process.start_time, process.pid))
        .filter(|process| !process.is_dead())
        .copied()
}

fn unreadable(proc: &Proc, pid: i32, file: &str) -> io::Error {
    io::Error::other(format!("{} cannot be read", proc.path(pid, file).display()))
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
