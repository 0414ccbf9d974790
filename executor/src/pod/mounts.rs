//! What the kubelet's and the runtime's mounts say of a container: `/proc/PID/mountinfo`.

use super::cgroup::{is_container_id, is_pod_uid};

/// What a container's mounts say of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Mounts {
    /// UID of its pod.
    pub pod_uid: Option<String>,
    /// Its name in the pod.
    pub container_name: Option<String>,
    /// ID of the pod's pause container.
    pub pause_id: Option<String>,
}

impl Mounts {
    /// Reads the text of `/proc/PID/mountinfo`.
    ///
    /// The kubelet binds `PODS/UID/etc-hosts` to `/etc/hosts` and `PODS/UID/containers/NAME/HASH` to the
    /// container's termination log; the runtime binds `/etc/hostname` or `/etc/resolv.conf` from a
    /// directory with the pause container's ID.
    pub fn read(text: &str) -> Self {
        let mounts: Vec<(&str, &str)> = text.lines().filter_map(source_and_point).collect();
        let hosts = mounts
            .iter()
            .find_map(|(source, _)| of_pod(source, "etc-hosts"));
        let log = termination_log(&mounts, hosts.map(|(uid, _)| uid));
        let pod_uid = hosts.or(log).map(|(uid, _)| uid);
        let pause_id = mounts
            .iter()
            .filter(|(_, point)| matches!(*point, "/etc/hostname" | "/etc/resolv.conf"))
            .find_map(|(source, _)| source.split('/').find(|part| is_container_id(part)));
        Self {
            pod_uid: pod_uid.map(str::to_owned),
            container_name: log.map(|(_, name)| name.to_owned()),
            pause_id: pause_id.map(str::to_owned),
        }
    }
}

/// Root within the mounted file system, and mount point: proc_pid_mountinfo(5).
fn source_and_point(line: &str) -> Option<(&str, &str)> {
    let mut fields = line.split(' ').skip(3);
    Some((fields.next()?, fields.next()?))
}

/// UID, and what follows, of a path `…/pods/UID/KIND[/…]`.
fn of_pod<'a>(source: &'a str, kind: &str) -> Option<(&'a str, &'a str)> {
    let mut rest = source;
    while let Some((_, tail)) = rest.split_once("/pods/") {
        if let Some((uid, below)) = tail.split_once('/')
            && is_pod_uid(uid)
            && let Some(below) = below.strip_prefix(kind)
        {
            return Some((uid, below));
        }
        rest = tail;
    }
    None
}

/// UID and container of the termination log. A container can have the directories of others mounted
/// too, and its log at a place of its own: so the usual place comes first, else all must agree.
fn termination_log<'a>(
    mounts: &[(&'a str, &'a str)],
    uid: Option<&str>,
) -> Option<(&'a str, &'a str)> {
    let logs = || {
        mounts.iter().filter_map(|(source, point)| {
            let (found, below) = of_pod(source, "containers/")?;
            let (name, file) = below.split_once('/')?;
            let fits = !name.is_empty() && !file.is_empty() && !file.contains('/');
            let ours = uid.is_none_or(|uid| uid == found);
            (fits && ours).then_some((found, name, *point))
        })
    };
    let usual = logs().find(|(_, _, point)| *point == "/dev/termination-log");
    let (uid, name, _) = usual.or_else(|| {
        let first = logs().next()?;
        logs().all(|other| other.1 == first.1).then_some(first)
    })?;
    Some((uid, name))
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f3c2d41-5a6b-4c7d-8e9f-001122334455";
    const OTHER: &str = "ffffffff-5a6b-4c7d-8e9f-001122334455";

    fn line(source: &str, point: &str) -> String {
        format!("36 35 98:0 {source} {point} rw,noatime master:1 - ext4 /dev/root rw\n")
    }

    fn pause() -> String {
        "7".repeat(64)
    }

    fn usual() -> String {
        [
            line("/", "/"),
            line(
                &format!("/var/lib/kubelet/pods/{UID}/etc-hosts"),
                "/etc/hosts",
            ),
            line(
                &format!("/var/lib/kubelet/pods/{UID}/containers/sandbox/0a1b2c3d"),
                "/dev/termination-log",
            ),
            line(
                &format!(
                    "/containerd/io.containerd.grpc.v1.cri/sandboxes/{}/hostname",
                    pause()
                ),
                "/etc/hostname",
            ),
        ]
        .concat()
    }

    #[test]
    fn the_usual_mounts_say_everything() {
        let expected = Mounts {
            pod_uid: Some(UID.to_owned()),
            container_name: Some("sandbox".to_owned()),
            pause_id: Some(pause()),
        };
        assert_eq!(Mounts::read(&usual()), expected);
    }

    #[test]
    fn a_log_elsewhere_is_found_and_a_volume_is_none() {
        let log = format!("/lib/pods/{UID}/containers/main/0a");
        let moved = line(&log, "/run/why");
        assert_eq!(Mounts::read(&moved).container_name.as_deref(), Some("main"));
        assert_eq!(Mounts::read(&moved).pod_uid.as_deref(), Some(UID));
        let volume = line(
            &format!("/lib/pods/{UID}/volume-subpaths/v/main/0"),
            "/data",
        );
        assert_eq!(Mounts::read(&volume), Mounts::default());
    }

    #[test]
    fn mounts_of_others_do_not_mislead() {
        let foreign = format!("/var/lib/kubelet/pods/{OTHER}/containers/other/1");
        let text = line(&foreign, "/mnt/a") + &usual();
        assert_eq!(
            Mounts::read(&text).container_name.as_deref(),
            Some("sandbox")
        );
        let own = |name: &str| format!("/var/lib/kubelet/pods/{UID}/containers/{name}/1");
        let undecided = line(&own("a"), "/x") + &line(&own("b"), "/y");
        assert_eq!(Mounts::read(&undecided).container_name, None);
    }

    #[test]
    fn garbage_says_nothing() {
        for text in [
            "",
            "\n",
            "1 2 3",
            "1 2 3 /pods/x/etc-hosts /etc/hosts",
            "/pods//pods/",
        ] {
            assert_eq!(Mounts::read(text), Mounts::default());
        }
    }
}
