//! `/proc/PID/status`: whose rights a process has.

/// Real, effective and saved ID.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ids {
    /// Real.
    pub real: u32,
    /// Effective.
    pub effective: u32,
    /// Saved.
    pub saved: u32,
}

/// Capability sets as bit masks, capabilities(7).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Capabilities {
    /// Kept over an exec of a program that asks for them.
    pub inheritable: u64,
    /// Those it may use.
    pub permitted: u64,
    /// Those it uses.
    pub effective: u64,
    /// Those an exec may ever give.
    pub bounding: u64,
    /// Kept over an exec of any program.
    pub ambient: u64,
}

/// What is needed of `/proc/PID/status`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Status {
    /// User.
    pub uids: Ids,
    /// Group.
    pub gids: Ids,
    /// Supplementary groups.
    pub groups: Vec<u32>,
    /// File mode creation mask.
    pub umask: Option<u32>,
    /// Who traces it; 0 is nobody.
    pub tracer: i32,
    /// Capabilities.
    pub capabilities: Capabilities,
    /// `no_new_privs`.
    pub no_new_privs: bool,
    /// 0 none, 1 strict, 2 filter.
    pub seccomp: u32,
}

/// Capabilities that this program needs or speaks of.
pub mod capability {
    /// Signal processes of others.
    pub const KILL: u32 = 5;
    /// Set groups.
    pub const SETGID: u32 = 6;
    /// Set users.
    pub const SETUID: u32 = 7;
    /// Drop from the bounding set.
    pub const SETPCAP: u32 = 8;
    /// chroot.
    pub const SYS_CHROOT: u32 = 18;
    /// Trace processes of others.
    pub const SYS_PTRACE: u32 = 19;

    const NAMES: [&str; 41] = [
        "CHOWN",
        "DAC_OVERRIDE",
        "DAC_READ_SEARCH",
        "FOWNER",
        "FSETID",
        "KILL",
        "SETGID",
        "SETUID",
        "SETPCAP",
        "LINUX_IMMUTABLE",
        "NET_BIND_SERVICE",
        "NET_BROADCAST",
        "NET_ADMIN",
        "NET_RAW",
        "IPC_LOCK",
        "IPC_OWNER",
        "SYS_MODULE",
        "SYS_RAWIO",
        "SYS_CHROOT",
        "SYS_PTRACE",
        "SYS_PACCT",
        "SYS_ADMIN",
        "SYS_BOOT",
        "SYS_NICE",
        "SYS_RESOURCE",
        "SYS_TIME",
        "SYS_TTY_CONFIG",
        "MKNOD",
        "LEASE",
        "AUDIT_WRITE",
        "AUDIT_CONTROL",
        "SETFCAP",
        "MAC_OVERRIDE",
        "MAC_ADMIN",
        "SYSLOG",
        "WAKE_ALARM",
        "BLOCK_SUSPEND",
        "AUDIT_READ",
        "PERFMON",
        "BPF",
        "CHECKPOINT_RESTORE",
    ];

    /// As Kubernetes writes it, without `CAP_`.
    pub fn name(number: u32) -> String {
        let index = usize::try_from(number).unwrap_or(usize::MAX);
        NAMES
            .get(index)
            .map_or_else(|| number.to_string(), |name| (*name).to_owned())
    }

    /// Names of a set.
    pub fn names(set: u64) -> Vec<String> {
        (0..u64::BITS).filter(|n| has(set, *n)).map(name).collect()
    }

    /// Whether the set has it.
    pub const fn has(set: u64, number: u32) -> bool {
        set & bit(number) != 0
    }

    /// The set of one.
    pub const fn bit(number: u32) -> u64 {
        1 << number
    }
}

impl Status {
    /// Of the file's text. `None` where a field that every kernel since 4.8 writes is missing.
    pub fn parse(text: &str) -> Option<Self> {
        let field = |name: &str| {
            text.lines().find_map(|line| {
                let (key, value) = line.split_once(':')?;
                (key == name).then(|| value.trim())
            })
        };
        let ids = |name: &str| {
            let mut numbers = field(name)?.split_ascii_whitespace().map(str::parse);
            Some(Ids {
                real: numbers.next()?.ok()?,
                effective: numbers.next()?.ok()?,
                saved: numbers.next()?.ok()?,
            })
        };
        let set = |name: &str| u64::from_str_radix(field(name)?, 16).ok();
        let groups = field("Groups")?.split_ascii_whitespace().map(str::parse);
        Some(Self {
            uids: ids("Uid")?,
            gids: ids("Gid")?,
            groups: groups.collect::<Result<_, _>>().ok()?,
            umask: field("Umask").and_then(|mask| u32::from_str_radix(mask, 8).ok()),
            tracer: field("TracerPid")?.parse().ok()?,
            capabilities: Capabilities {
                inheritable: set("CapInh")?,
                permitted: set("CapPrm")?,
                effective: set("CapEff")?,
                bounding: set("CapBnd")?,
                ambient: set("CapAmb")?,
            },
            // Absent where the kernel was built without seccomp, and before 4.10.
            no_new_privs: field("NoNewPrivs") == Some("1"),
            seccomp: field("Seccomp")
                .and_then(|mode| mode.parse().ok())
                .unwrap_or(0),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = "Name:\tsleep\nUmask:\t0022\nState:\tS (sleeping)\nTracerPid:\t0\n\
        Uid:\t1000\t1001\t1002\t1003\nGid:\t5\t6\t7\t8\nGroups:\t10 2000 \n\
        CapInh:\t0000000000000000\nCapPrm:\t00000000a80425fb\nCapEff:\t0000000000080000\n\
        CapBnd:\t000001ffffffffff\nCapAmb:\t0000000000000001\nNoNewPrivs:\t1\nSeccomp:\t2\n";

    #[test]
    fn all_fields_are_read() {
        let status = Status::parse(TEXT).unwrap();
        let expected = Ids {
            real: 1000,
            effective: 1001,
            saved: 1002,
        };
        assert_eq!(status.uids, expected);
        assert_eq!(status.gids.saved, 7);
        assert_eq!(status.groups, [10, 2000]);
        assert_eq!(status.umask, Some(0o022));
        assert_eq!(
            capability::names(status.capabilities.effective),
            ["SYS_PTRACE"]
        );
        assert_eq!(capability::names(status.capabilities.bounding).len(), 41);
        assert_eq!(capability::names(status.capabilities.ambient), ["CHOWN"]);
        assert!(status.no_new_privs);
        assert_eq!(status.seccomp, 2);
    }

    #[test]
    fn no_groups_are_an_empty_list_and_a_missing_field_is_nothing() {
        let alone = TEXT.replace("10 2000 ", " ");
        assert!(Status::parse(&alone).unwrap().groups.is_empty());
        assert_eq!(Status::parse(&TEXT.replace("CapBnd", "CapXxx")), None);
        assert_eq!(Status::parse(""), None);
    }

    #[test]
    fn capabilities_have_their_numbers() {
        for (number, name) in [
            (capability::KILL, "KILL"),
            (capability::SETGID, "SETGID"),
            (capability::SETUID, "SETUID"),
            (capability::SETPCAP, "SETPCAP"),
            (capability::SYS_CHROOT, "SYS_CHROOT"),
            (capability::SYS_PTRACE, "SYS_PTRACE"),
            (40, "CHECKPOINT_RESTORE"),
            (63, "63"),
        ] {
            assert_eq!(capability::name(number), name);
        }
    }
}
