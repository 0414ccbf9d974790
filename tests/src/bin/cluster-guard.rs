//! Ends what a test process started when that process ends, however it does.

fn main() -> anyhow::Result<std::process::ExitCode> {
    opensandbox_tests::guard::supervise::main()
}
