//! `just rights`: whether webhook and operator use every right that they are given.

fn main() -> std::process::ExitCode {
    opensandbox_tests::rights::main()
}
