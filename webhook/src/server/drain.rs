//! The order in which a server goes away, and the signal that starts it.
//!
//! In: nothing but a signal. Out: a [`Phase`] that accept loops and connections watch. Needs no
//! client. It does not know who is connected.

use std::io;

use opensandbox_program::Terminated;
use tokio::sync::watch;

/// How far the server is on its way out. Phases only ever grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Phase {
    /// Normal service. Also the first half of the drain delay: readiness is already false, but a
    /// client that had to reconnect now would most likely be sent back here.
    Serving,
    /// Connections are still accepted and served; kept ones are asked to go elsewhere.
    Leaving,
    /// Nothing new is accepted; requests in flight are finished, connections that stay idle closed.
    Closing,
    /// The time limit has passed: whatever is left is dropped.
    Aborting,
}

/// Resolves once `phase` has come to `at_least`, or its server is gone.
pub(super) async fn reached(phase: &mut watch::Receiver<Phase>, at_least: Phase) {
    // An error means that the sender was dropped, that is, the server itself: the last phase.
    let _ = phase.wait_for(|now| *now >= at_least).await;
}

/// Resolves on the first SIGTERM (how Kubernetes ends a pod) or SIGINT (Ctrl-C).
///
/// # Errors
/// When the signal handlers cannot be installed; nothing is waited for then.
pub async fn terminated() -> io::Result<()> {
    Terminated::listen()?.wait().await;
    Ok(())
}
