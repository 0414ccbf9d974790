//! Pods that Pod Security Admission refuses: what to do about it. Pure.

use opensandbox_api::labels;
use opensandbox_api::sidecar::Mode;

/// What to do, in a sentence, if a refusal of the API server is that of Pod Security Admission. `mode` is
/// that of the pod that was refused, if it has the executor.
pub(crate) fn remedy(refusal: &str, mode: Option<Mode>) -> Option<String> {
    if !refusal.contains("violates PodSecurity") {
        return None;
    }
    let securities = "set the securityContext of the template as it asks for below";
    Some(match mode {
        Some(Mode::Sidecar) => format!(
            "the Pod Security level of the namespace forbids SYS_PTRACE, which the sidecar needs; set the annotation {}=in-container and {securities}, or the label {}=disabled to run no tasks",
            labels::EXECUTOR_MODE,
            labels::INJECTION
        ),
        Some(Mode::InContainer) | None => {
            format!("the Pod Security level of the namespace forbids this pod; {securities}")
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_pod_security_refuses_gets_its_remedy() {
        let refusal = "pods \"p-1\" is forbidden: violates PodSecurity \"restricted:latest\": unrestricted capabilities";
        let sidecar = remedy(refusal, Some(Mode::Sidecar)).unwrap();
        assert!(
            sidecar.contains("sandbox.opensandbox.io/task-executor-mode=in-container"),
            "{sidecar}"
        );
        for mode in [None, Some(Mode::InContainer)] {
            let other = remedy(refusal, mode).unwrap();
            assert!(
                other.contains("securityContext") && !other.contains("SYS_PTRACE"),
                "{other}"
            );
        }
        assert_eq!(remedy("exceeded quota: pods", Some(Mode::Sidecar)), None);
    }
}
