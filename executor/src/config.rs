//! Flags and environment of `serve`: upstream's names where it has one. A flag wins over a variable, a
//! variable over the default.

use std::net::SocketAddr;
use std::path::PathBuf;

use clap::{Args, ValueEnum};
use opensandbox_api::labels;

/// What `serve` and `doctor` are told.
#[derive(Clone, Debug, Args)]
pub struct Config {
    /// Address to serve on.
    #[arg(long, env = "LISTEN_ADDR", default_value = "0.0.0.0:5758")]
    pub listen_addr: SocketAddr,
    /// How tasks get into the sandbox container.
    #[arg(long, env = "TASK_EXECUTOR_MODE", value_enum, default_value_t = ModeSetting::Auto)]
    pub mode: ModeSetting,
    /// Who may give orders.
    #[arg(long, env = "TASK_EXECUTOR_AUTH", value_enum, default_value_t = AuthSetting::Signed)]
    pub auth: AuthSetting,
    /// The operator's public key: Ed25519, 32 bytes, base64.
    #[arg(long, env = labels::VERIFICATION_KEY_ENV)]
    pub verification_key: Option<String>,
    /// Name of the container that tasks run in.
    #[arg(long, env = labels::MAIN_CONTAINER_NAME_ENV)]
    pub main_container_name: Option<String>,
    /// UID of this pod; found in this container's mounts if absent.
    #[arg(long, env = "POD_UID")]
    pub pod_uid: Option<String>,
    /// Tasks that may run at once; further ones wait.
    #[arg(long, env = "MAX_TASKS", default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    pub max_tasks: u16,
    /// Bytes of output kept per task and stream; older ones are dropped and counted.
    #[arg(long, env = "OUTPUT_BUFFER_BYTES", default_value_t = 1024 * 1024, value_parser = clap::value_parser!(u32).range(4096..=64 * 1024 * 1024))]
    pub output_buffer_bytes: u32,
    /// Bytes of output kept for all tasks together.
    #[arg(long, env = "OUTPUT_TOTAL_BYTES", default_value_t = 96 * 1024 * 1024)]
    pub output_total_bytes: u64,
    /// Bytes per second of task output that are repeated in this container's log; what is more is
    /// dropped there and counted. 0 repeats nothing.
    #[arg(long, env = "LOG_OUTPUT_RATE", default_value_t = 256 * 1024)]
    pub log_output_rate: u32,
    /// Upstream's flag; nothing is stored, see docs/decisions.
    #[arg(long, env = "DATA_DIR", hide = true)]
    pub data_dir: Option<PathBuf>,
    /// Upstream's flag: `true` stands for `--mode=sidecar`.
    #[arg(long, env = "ENABLE_SIDECAR_MODE", hide = true, num_args = 0..=1, default_missing_value = "true")]
    pub enable_sidecar_mode: Option<bool>,
    /// Upstream's flag; unused there too.
    #[arg(long, env = "CRI_SOCKET", hide = true)]
    pub cri_socket: Option<PathBuf>,
    /// Upstream's flag: the log goes to standard error.
    #[arg(long, hide = true)]
    pub log_dir: Option<PathBuf>,
    /// Upstream's flag, as above.
    #[arg(long, hide = true)]
    pub log_max_size: Option<u32>,
    /// Upstream's flag, as above.
    #[arg(long, hide = true)]
    pub log_max_backups: Option<u32>,
    /// Upstream's flag, as above.
    #[arg(long, hide = true)]
    pub log_max_age: Option<u32>,
}

/// How tasks get into the sandbox container.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ModeSetting {
    /// `sidecar` where processes of other containers can be seen or a main container other than
    /// this one is named, else `in-container`.
    #[default]
    Auto,
    /// Into another container: injected, else by chroot.
    Sidecar,
    /// Into another container, injected and in no other way.
    Inject,
    /// Into another container, by chroot.
    Chroot,
    /// Into this container.
    InContainer,
}

/// Who may give orders.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum AuthSetting {
    /// Who signs them with the operator's key.
    #[default]
    Signed,
    /// Everybody who reaches the port, the sandbox included; for upstream's controller.
    None,
}
