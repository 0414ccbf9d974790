//! `just images`: the released images as archives, without a builder and without a registry.

fn main() -> std::process::ExitCode {
    opensandbox_tests::images::release::main()
}
