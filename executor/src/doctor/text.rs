//! The report for people.

use std::fmt;

use super::Report;

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let unknown = || "unknown".to_owned();
        let own = &self.executor;
        let mut line = |name: &str, value: &str| writeln!(f, "{name:<22}{value}");
        line("pod UID", &self.pod_uid.clone().unwrap_or_else(unknown))?;
        if let Some(seen) = &self.other_pod_uid_seen {
            line(
                "",
                &format!("but {seen} is what the container shows: correct --pod-uid (POD_UID)"),
            )?;
        }
        let name = own.container_name.clone().unwrap_or_else(unknown);
        line(
            "this container",
            &format!(
                "{name} {}",
                own.container_id.as_deref().unwrap_or("(ID unknown)")
            ),
        )?;
        line("user", &own.uid.map_or_else(unknown, |uid| uid.to_string()))?;
        line("capabilities", &list(&own.effective_capabilities))?;
        line("bounding set", &list(&own.bounding_capabilities))?;
        let privileges = if own.no_new_privs {
            "no new privileges"
        } else {
            "new privileges possible"
        };
        line(
            "seccomp",
            &format!(
                "{}, {privileges}",
                own.seccomp.clone().unwrap_or_else(unknown)
            ),
        )?;
        line(
            "PID namespace",
            if self.pid_namespace_shared {
                "shared"
            } else {
                "not shared"
            },
        )?;
        for container in &self.containers {
            let name = container.name.as_deref().unwrap_or("(name unknown)");
            let main = container.pid.map_or_else(
                || "main process ended".to_owned(),
                |pid| format!("main process {pid}"),
            );
            let uid = container.uid.map_or_else(unknown, |uid| uid.to_string());
            line(
                "container",
                &format!("{name} {}, {main}, user {uid}", container.id),
            )?;
        }
        line(
            "tasks belong into",
            &self.place.clone().unwrap_or_else(|| "nowhere".to_owned()),
        )?;
        line(
            "sandbox container",
            &self.target.clone().unwrap_or_else(|| "none".to_owned()),
        )?;
        let kernel = &self.kernel;
        let setting = |value: &Option<String>| value.clone().unwrap_or_else(|| "absent".to_owned());
        line("yama.ptrace_scope", &setting(&kernel.yama_ptrace_scope))?;
        line("vm.memfd_noexec", &setting(&kernel.memfd_noexec))?;
        line("cgroup", &setting(&kernel.cgroup))?;
        line("orders", &self.authentication)?;
        for way in &self.modes {
            let verdict = match (way.possible, way.allowed) {
                (true, true) => "possible",
                (true, false) => "possible, but --mode forbids it",
                (false, _) => "not possible",
            };
            line(&format!("mode {}", way.mode), verdict)?;
            for need in &way.needs {
                line("", &format!("- {need}"))?;
            }
        }
        match &self.problem {
            Some(problem) => line("result", &format!("no task can run: {problem}")),
            None => line("result", "tasks can run"),
        }
    }
}

fn list(names: &[String]) -> String {
    if names.is_empty() {
        "none".to_owned()
    } else {
        names.join(" ")
    }
}
