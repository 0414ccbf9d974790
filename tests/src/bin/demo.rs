//! `cargo demo`: the main job, shown on a real Kubernetes API server.

fn main() -> std::process::ExitCode {
    opensandbox_tests::demo::main()
}
