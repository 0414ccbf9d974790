//! The offline commands, through the real program.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]
#![expect(
    clippy::unwrap_used,
    reason = "in helpers of tests a failure is a failed test"
)]

mod findings;
mod output;

use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use serde_json::Value;
use tempfile::TempDir;

/// The seed's first example, with comments and odd formatting that must survive where nothing changes.
const BASIC: &str = r#"apiVersion: sandbox.opensandbox.io/v1alpha1
kind: Pool
metadata:
  name: basic-pool
  namespace: default
spec:
  template:
    spec:
      containers:
      - name: sandbox-container
        image: ubuntu:22.04
        command: ["sleep", "infinity"]
        resources:
          requests:
            cpu: "100m"
            memory: "128Mi"
          limits:
            cpu: "500m"
            memory: "256Mi"
  capacitySpec:
    bufferMax: 10
    bufferMin: 2
    poolMax: 20
    poolMin: 5
"#;

const DEPLOYMENT: &str =
    "apiVersion:   apps/v1   # odd\nkind: Deployment\nmetadata: {name:   d}\nspec:\n\n  x: 'yes'\n";

const SEED_IMAGES: &str = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: opensandbox-images\n  namespace: default\ndata:\n  taskExecutorImage: \"your-registry/opensandbox-task-executor:v1.0.0\"\n";

/// The seed's second example.
fn task_enabled() -> String {
    let sidecar = r#"      - name: task-executor
        image: opensandbox.io/task-executor:v0.0.1
        imagePullPolicy: IfNotPresent
        resources:
          requests:
            cpu: "100m"
            memory: "128Mi"
          limits:
            cpu: "500m"
            memory: "256Mi"
        securityContext:
          capabilities:
            add: ["SYS_PTRACE"]
"#;
    BASIC
        .replace("basic-pool", "task-enabled-pool")
        .replace(
            "    spec:\n      containers",
            "    spec:\n      shareProcessNamespace: true\n      containers",
        )
        .replace("  capacitySpec", &format!("{sidecar}  capacitySpec"))
}

fn opted_out() -> String {
    BASIC.replace("  namespace: default\n", "  namespace: default\n  labels: {sandbox.opensandbox.io/task-executor: disabled}  # no tasks\n")
}

fn program() -> Command {
    Command::new(env!("CARGO_BIN_EXE_opensandbox-webhook"))
}

/// Runs the program with `stdin` and gives exit status, standard output and standard error.
fn run(arguments: &[&str], stdin: &str) -> (i32, String, String) {
    run_in(Path::new("."), arguments, stdin)
}

fn run_in(directory: &Path, arguments: &[&str], stdin: &str) -> (i32, String, String) {
    let mut child = program()
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let text = stdin.to_owned();
    // From a thread, since the program may write before it has read everything; a refused
    // argument ends it before it reads anything.
    let writer = std::thread::spawn(move || {
        let _ = input.write_all(text.as_bytes());
    });
    let Output {
        status,
        stdout,
        stderr,
    } = child.wait_with_output().unwrap();
    writer.join().unwrap();
    (
        status.code().unwrap(),
        String::from_utf8(stdout).unwrap(),
        String::from_utf8(stderr).unwrap(),
    )
}

fn fine(arguments: &[&str], stdin: &str) -> String {
    let (status, out, log) = run(arguments, stdin);
    assert_eq!(status, 0, "{arguments:?}\n{log}");
    out
}

fn objects(yaml: &str) -> Vec<Value> {
    serde_saphyr::from_multiple(yaml).unwrap()
}

fn files(entries: &[(&str, &str)]) -> TempDir {
    let directory = tempfile::tempdir().unwrap();
    for (name, text) in entries {
        std::fs::write(directory.path().join(name), text).unwrap();
    }
    directory
}

fn names(pool: &Value) -> Vec<&str> {
    pool["spec"]["template"]["spec"]["containers"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| c["name"].as_str().unwrap())
        .collect()
}
