//! The task executor as a process of this machine.

use std::net::TcpListener;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::LazyLock;

/// Names the program, so that it is not built.
const PROGRAM: &str = "TASK_EXECUTOR_PROGRAM";

/// An executor that runs tasks beside itself; killed on drop.
pub(crate) struct Executor {
    pub(crate) port: u16,
    child: Child,
    keys: String,
    pod_uid: String,
}

impl Executor {
    /// One that takes orders signed with one of these keys for this pod.
    pub(crate) fn start(keys: &str, pod_uid: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        Self {
            port,
            child: spawn(port, keys, pod_uid),
            keys: keys.to_owned(),
            pod_uid: pod_uid.to_owned(),
        }
    }

    /// Kills it.
    pub(crate) fn kill(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// Starts another in its place.
    pub(crate) fn restart(&mut self) {
        self.kill();
        self.child = spawn(self.port, &self.keys, &self.pod_uid);
    }
}

impl Drop for Executor {
    fn drop(&mut self) {
        // It may have been killed before.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn spawn(port: u16, keys: &str, pod_uid: &str) -> Child {
    let mut command = Command::new(&*BINARY);
    command
        .args(["serve", "--mode=in-container", "--auth=signed"])
        .arg(format!("--listen-addr=127.0.0.1:{port}"))
        .arg(format!("--verification-key={keys}"))
        .arg(format!("--pod-uid={pod_uid}"))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command.spawn().unwrap()
}

/// The program, built with Cargo in the target directory of this test.
static BINARY: LazyLock<PathBuf> = LazyLock::new(|| {
    if let Some(path) = std::env::var_os(PROGRAM) {
        return path.into();
    }
    let own = std::env::current_exe().unwrap();
    let directory = own.parent().and_then(|deps| deps.parent()).unwrap();
    let mut build = Command::new(env!("CARGO"));
    build
        .args([
            "build",
            "--locked",
            "--quiet",
            // For one package alone its dependencies would have other features, and be compiled once more.
            "--workspace",
            "--bin=task-executor",
            "--bin=task-executor-agent",
        ])
        .arg("--target-dir")
        .arg(directory.parent().unwrap())
        .current_dir(env!("CARGO_MANIFEST_DIR"));
    // With what Cargo told this process about its own package ring and everything above it would be
    // compiled anew.
    let variables = std::env::vars_os().filter_map(|(name, _)| name.into_string().ok());
    for name in variables.filter(|name| is_of_a_package(name)) {
        build.env_remove(name);
    }
    if directory.ends_with("release") {
        build.arg("--release");
    }
    assert!(
        build.status().unwrap().success(),
        "task-executor does not build"
    );
    directory.join("task-executor")
});

/// Whether Cargo sets this variable for the package that it runs, and not a person for Cargo.
fn is_of_a_package(variable: &str) -> bool {
    let prefixes = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_BIN_EXE_"];
    let names = [
        "CARGO_BIN_NAME",
        "CARGO_CRATE_NAME",
        "CARGO_PRIMARY_PACKAGE",
        "OUT_DIR",
    ];
    prefixes.iter().any(|prefix| variable.starts_with(prefix)) || names.contains(&variable)
}
