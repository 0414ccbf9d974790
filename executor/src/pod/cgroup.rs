//! Which container a process is in, from `/proc/PID/cgroup`.
//!
//! What is read, for a container of ID *c* in a pod of UID *u*:
//!
//! - `/kubepods/burstable/podU/C`: cgroupfs driver;
//! - `/kubepods.slice/kubepods-podU.slice/cri-containerd-C.scope`: systemd driver, with `_` for `-` in
//!   the UID; `crio-C.scope` and `docker-C.scope` likewise;
//! - `/system.slice/kubepods-podU.slice:cri-containerd:C`: the two mixed up, which runs all the same;
//! - `/../C`: a neighbour seen from a container with a cgroup namespace of its own (cgroup v2), whose
//!   own path is `/`;
//! - any of these under the path of a node that is itself a container, and with paths below, made by
//!   what runs in the container.

/// What a process's cgroups say.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    /// ID of its container, 64 hexadecimal digits. Absent for a process outside any, and for those of
    /// our own container where that has a cgroup namespace.
    pub container_id: Option<String>,
    /// Its pod.
    pub pod: PodOf,
    /// It lies outside our cgroup namespace.
    pub outside: bool,
}

/// What the path of a cgroup says of the pod.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodOf {
    /// The one of this UID.
    Uid(String),
    /// Ours: it is beside our container.
    Same,
    /// Nothing.
    Unknown,
}

/// Reads the text of `/proc/PID/cgroup`. The hierarchies of cgroup v1 may differ, since not all of them
/// need be used: the first that names a container counts.
pub fn place(text: &str) -> Place {
    let mut paths = text.lines().filter_map(path);
    let mut outside = false;
    let named = paths.find_map(|path| {
        outside |= path.starts_with("/..");
        container(path)
    });
    let (container_id, pod) = named.map_or((None, PodOf::Unknown), |(id, pod)| (Some(id), pod));
    Place {
        container_id,
        pod,
        outside,
    }
}

/// `NUMBER:CONTROLLERS:PATH`.
fn path(line: &str) -> Option<&str> {
    line.splitn(3, ':').nth(2)
}

fn container(path: &str) -> Option<(String, PodOf)> {
    // The systemd form in a cgroupfs has colons where others have slashes.
    let parts: Vec<&str> = path
        .split(['/', ':'])
        .filter(|part| !part.is_empty())
        .collect();
    let above = parts.iter().take_while(|part| **part == "..").count();
    if above == 1 {
        // A neighbour in our pod; what follows its ID is its own business, a kubelet in it even.
        let id = parts.iter().find_map(|part| container_id(part))?;
        return Some((id, PodOf::Same));
    }
    let pod = parts
        .iter()
        .enumerate()
        .rev()
        .find_map(|(index, part)| pod_uid(part).map(|uid| (index, uid)));
    if let Some((index, uid)) = pod {
        let id = parts
            .iter()
            .skip(index + 1)
            .find_map(|part| container_id(part))?;
        return Some((id, PodOf::Uid(uid)));
    }
    let id = parts.iter().rev().find_map(|part| container_id(part))?;
    Some((id, PodOf::Unknown))
}

/// `C`, `RUNTIME-C.scope`, `RUNTIME-C`.
fn container_id(part: &str) -> Option<String> {
    let name = part.strip_suffix(".scope").unwrap_or(part);
    let (runtime, id) = name.rsplit_once('-').unwrap_or(("", name));
    // CRI-O's monitor of a container is not in it.
    let monitor = runtime.ends_with("conmon");
    (is_container_id(id) && !monitor).then(|| id.to_owned())
}

/// A whole ID, as containerd, CRI-O and Docker write it.
pub fn is_container_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(is_hexadecimal)
}

/// A digit of an ID.
pub fn is_hexadecimal(byte: u8) -> bool {
    matches!(byte, b'0'..=b'9' | b'a'..=b'f')
}

/// `podU`, `kubepods-QOS-podU.slice`.
fn pod_uid(part: &str) -> Option<String> {
    let name = part.strip_suffix(".slice").unwrap_or(part);
    let (_, uid) = name.rsplit_once("pod")?;
    let uid = uid.replace('_', "-");
    is_pod_uid(&uid).then_some(uid)
}

/// A UUID, or the hash that the kubelet gives a pod from a file.
pub fn is_pod_uid(text: &str) -> bool {
    let hash = text.len() == 32 && text.bytes().all(is_hexadecimal);
    let uuid = text.len() == 36
        && text.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => is_hexadecimal(byte),
        });
    hash || uuid
}

#[cfg(test)]
mod tests {
    use super::*;

    const UID: &str = "0f3c2d41-5a6b-4c7d-8e9f-001122334455";

    fn id(digit: char) -> String {
        std::iter::repeat_n(digit, 64).collect()
    }

    #[track_caller]
    fn check(text: &str, container_id: Option<String>, pod: PodOf) {
        let found = place(text);
        assert_eq!(
            (found.container_id, found.pod),
            (container_id, pod),
            "{text}"
        );
    }

    #[test]
    fn every_form_is_read() {
        let (a, b, c) = (id('a'), id('b'), id('c'));
        let underlined = UID.replace('-', "_");
        let ours = || PodOf::Uid(UID.to_owned());
        check(
            &format!("0::/kubepods/burstable/pod{UID}/{a}\n"),
            Some(a.clone()),
            ours(),
        );
        check(
            &format!(
                "0::/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod{underlined}.slice/cri-containerd-{a}.scope"
            ),
            Some(a.clone()),
            ours(),
        );
        check(
            &format!("0::/system.slice/kubepods-pod{underlined}.slice:cri-containerd:{a}"),
            Some(a.clone()),
            ours(),
        );
        check(
            &format!("0::/kubepods.slice/kubepods-pod{underlined}.slice/crio-{a}.scope/container"),
            Some(a.clone()),
            ours(),
        );
        check(
            &format!("0::/kubepods.slice/kubepods-pod{underlined}.slice/crio-conmon-{a}.scope"),
            None,
            PodOf::Unknown,
        );
        // Hybrid: some hierarchies are not used.
        check(
            &format!("9:name=systemd:/\n8:pids:/\n4:memory:/kubepods/pod{UID}/{a}\n0::/\n"),
            Some(a.clone()),
            ours(),
        );
        // A node that is a container, and a container in a container.
        check(
            &format!("0::/docker/{b}/kubelet/kubepods/pod{UID}/{a}/docker/{c}"),
            Some(a.clone()),
            ours(),
        );
        check(
            &format!("0::/system.slice/docker-{a}.scope"),
            Some(a),
            PodOf::Unknown,
        );
    }

    #[test]
    fn private_cgroup_namespaces_are_read() {
        let (a, c) = (id('a'), id('c'));
        check(&format!("0::/../{a}"), Some(a.clone()), PodOf::Same);
        check(
            &format!("0::/../cri-containerd-{a}.scope/x/{c}"),
            Some(a.clone()),
            PodOf::Same,
        );
        check(
            &format!("0::/../{a}/kubepods/pod{UID}/{c}"),
            Some(a.clone()),
            PodOf::Same,
        );
        check(
            &format!("0::/../../pod{UID}/{a}"),
            Some(a.clone()),
            PodOf::Uid(UID.to_owned()),
        );
        assert!(place(&format!("0::/../{a}")).outside);
        assert!(place("0::/../../../init.scope").outside);
        assert!(!place("0::/").outside);
        // In our own container, by something that runs containers there.
        assert!(!place(&format!("0::/docker/{c}")).outside);
    }

    #[test]
    fn what_is_no_container_is_none() {
        let short = &id('a')[1..];
        for text in [
            "",
            "0::/",
            "garbage",
            "0::/kubepods",
            "0::/kubepods/podx/y",
            &format!("0::/kubepods/pod{UID}"),
            &format!("0::/kubepods/pod{UID}/{short}"),
            &format!("0::/kubepods/pod{UID}/A{short}"),
        ] {
            check(text, None, PodOf::Unknown);
        }
    }

    #[test]
    fn pod_uids() {
        assert!(is_pod_uid(UID) && is_pod_uid(&id('a')[..32]));
        for other in [
            "",
            "s",
            &UID[1..],
            &UID.to_uppercase(),
            &id('a'),
            &UID.replace('-', "_"),
        ] {
            assert!(!is_pod_uid(other), "{other}");
        }
    }
}
