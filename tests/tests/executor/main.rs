//! The task executor on a real node: in pods that a kubelet made, asked over the pod network.

mod identity;
mod injected;
mod logs;
mod memory;
mod modes;
mod observer;
mod outcomes;
mod output;
mod processes;
mod security;
mod settings;
mod stop;
mod survival;
mod targets;
mod wire;
