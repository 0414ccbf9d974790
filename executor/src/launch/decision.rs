//! Whether tasks belong into another container or into this one.

use super::LaunchError;
use crate::config::{Config, ModeSetting};
use crate::pod::Pod;
use crate::pod::target::fits_marker;

/// Where tasks belong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Into another container of the pod.
    Sidecar,
    /// Into this one.
    InContainer,
}

/// Where tasks belong, and why.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Decision {
    /// Where.
    pub place: Place,
    /// Why, for people.
    pub reason: &'static str,
}

/// Decides. Upstream's executor, where it could not enter the sandbox container, silently ran tasks in
/// its own, as root and with its service account: that is an error here.
///
/// # Errors
///
/// [`LaunchError::NotShared`].
pub fn mode(config: &Config, pod: &Pod) -> Result<Decision, LaunchError> {
    let sidecar = |reason| Decision {
        place: Place::Sidecar,
        reason,
    };
    let in_container = |reason| Decision {
        place: Place::InContainer,
        reason,
    };
    let wanted = config.main_container_name.as_deref();
    let outside = |reason| {
        if pod.shared_pid_namespace {
            return Ok(sidecar(reason));
        }
        Err(LaunchError::NotShared {
            wanted: wanted.map(str::to_owned),
            own: pod.own.name.clone(),
        })
    };
    match config.mode {
        ModeSetting::Sidecar | ModeSetting::Inject | ModeSetting::Chroot => {
            return outside("--mode says so");
        }
        ModeSetting::InContainer => return Ok(in_container("--mode says so")),
        ModeSetting::Auto => {}
    }
    if config.enable_sidecar_mode == Some(true) {
        return outside("--enable-sidecar-mode says so");
    }
    if wanted.is_some() && pod.own.name.as_deref() == wanted {
        return Ok(in_container("this is the main container"));
    }
    if fits_marker(pod.own.marker.as_deref(), wanted) {
        return Ok(in_container(
            "SANDBOX_MAIN_CONTAINER is set here, so this is the main container",
        ));
    }
    if pod.shared_pid_namespace {
        return Ok(sidecar("processes of other containers can be seen"));
    }
    match wanted {
        Some(_) => outside("another container is named"),
        None => Ok(in_container(
            "no other container can be seen, and none is named",
        )),
    }
}
