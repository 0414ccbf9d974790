//! Commands that the documents print, and what runs each of them: the walk on a real node runs most as they
//! are printed; others are the subject of a test of their own. A command that is in no row fails a test, so
//! that none is printed which nobody has ever run.

use anyhow::Result;

use super::markdown::Page;

/// What runs a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// The walk, see `tests/tests/walk.rs`, as printed but for `POD` and `NAME`; what the documents say
    /// that it prints is compared.
    Walk,
    /// Another test, or what it stands on: a file of the repository, and words in it that run the command.
    Test(&'static str, &'static str),
    /// Nothing here, and why.
    Outside(&'static str),
}

use Run::{Outside, Test, Walk};

/// The rows: a command, where `*` stands for any text, and what runs it. The first that fits counts.
pub const RUNS: &[(&str, Run)] = &[
    // The two that everybody begins with, and what contributors run.
    (
        "cargo demo",
        Test("tests/tests/demo.rs", "CARGO_BIN_EXE_demo"),
    ),
    (
        "cargo test",
        Test(".ci/run", "cargo test --workspace --locked"),
    ),
    ("bash .ci/run", Outside("CI itself")),
    // Installation.
    (
        "kubectl apply --server-side -k config/default",
        Test(
            "tests/src/installation.rs",
            "[\"apply\", \"--server-side\", \"-f\", \"-\"]",
        ),
    ),
    (
        "kubectl apply -k config/default",
        Test(
            "tests/src/demo/context.rs",
            "kubectl apply -k config/default",
        ),
    ),
    (
        "kubectl apply --server-side -k .",
        Test(
            "tests/tests/kustomize.rs",
            "an_image_override_reaches_pools_and_the_config_map",
        ),
    ),
    (
        "kubectl apply -k config/monitoring",
        Test("tests/tests/kustomize.rs", "config/monitoring"),
    ),
    (
        "kubectl -n opensandbox-system rollout status *",
        Test("tests/tests/release.rs", "rollout status"),
    ),
    (
        "kubectl delete -k config/default --ignore-not-found",
        Test(
            "tests/tests/release.rs",
            "delete -k {directory} --ignore-not-found",
        ),
    ),
    (
        "kubectl delete mutatingwebhookconfiguration,validatingwebhookconfiguration opensandbox-webhook",
        Test(
            "tests/tests/release.rs",
            "delete {CONFIGURATIONS} opensandbox-webhook",
        ),
    ),
    (
        "kubectl delete batchsandboxes,pools --all --all-namespaces",
        Test(
            "tests/tests/release.rs",
            "delete batchsandboxes,pools --all --all-namespaces",
        ),
    ),
    (
        "kubectl delete pod POD",
        Test("tests/tests/release.rs", "delete pod {}"),
    ),
    (
        "kubectl patch batchsandbox NAME --type=merge -p *",
        Test("tests/tests/release.rs", "{FINALIZERS}"),
    ),
    // With Helm, and with certificates of cert-manager's.
    (
        "helm install opensandbox config/helm/opensandbox --namespace opensandbox-system --create-namespace --values values.yaml",
        Test(
            "tests/tests/chart/combinations.rs",
            "the_api_server_takes_every_combination",
        ),
    ),
    (
        "helm install opensandbox config/helm/opensandbox --namespace opensandbox-system --create-namespace --set certificates.mode=cert-manager",
        Test(
            "tests/tests/chart/cert_manager.rs",
            "install opensandbox CHART -n opensandbox-system --create-namespace",
        ),
    ),
    (
        "helm install opensandbox config/helm/opensandbox --namespace opensandbox-system --create-namespace",
        Test(
            "tests/tests/chart/lifecycle.rs",
            "install opensandbox CHART -n opensandbox-system --create-namespace",
        ),
    ),
    (
        "helm install opensandbox * --take-ownership",
        Test("tests/tests/chart/lifecycle.rs", "--take-ownership"),
    ),
    (
        "helm install opensandbox * --set certificates.mode=existing-secret *",
        Test("tests/tests/chart/combinations.rs", "existing-secret"),
    ),
    (
        "helm install * --create-namespace --set 'watchNamespaces={*}'*",
        Test(
            "tests/tests/chart/lifecycle.rs",
            "--create-namespace --set watchNamespaces={team-b}",
        ),
    ),
    (
        "helm test opensandbox --namespace opensandbox-system",
        Test(
            "tests/tests/chart/lifecycle.rs",
            "test opensandbox -n opensandbox-system",
        ),
    ),
    (
        "helm uninstall opensandbox --namespace opensandbox-system",
        Test(
            "tests/tests/chart/lifecycle.rs",
            "uninstall opensandbox -n opensandbox-system",
        ),
    ),
    (
        "kubectl apply --server-side -k config/with-cert-manager",
        Test("tests/tests/chart/parity.rs", "config/with-cert-manager"),
    ),
    (
        "kubectl -n opensandbox-system get certificate opensandbox-webhook",
        Outside("cert-manager's kinds; tests/tests/chart/cert_manager.rs"),
    ),
    (
        "kubectl -n opensandbox-system delete secret opensandbox-webhook-tls",
        Test(
            "tests/tests/chart/cert_manager.rs",
            "opensandbox-webhook-tls",
        ),
    ),
    (
        "kubectl label namespace opensandbox-system pod-security.kubernetes.io/enforce=restricted",
        Test(
            "config/default/namespace.yaml",
            "pod-security.kubernetes.io/enforce: restricted",
        ),
    ),
    (
        "kubectl delete crd *",
        Test("tests/src/demo/removal.rs", "\"delete\""),
    ),
    (
        "docker build *",
        Test(
            "tests/src/images/dockerfiles.rs",
            "a_builder_without_a_network_makes_the_same_images",
        ),
    ),
    (
        "just images",
        Test(
            "tests/src/images/release.rs",
            "the_same_programs_give_the_same_bytes",
        ),
    ),
    ("skopeo copy *", Outside("needs a registry")),
    // Examples.
    (
        "kubectl apply -f examples/minimal-pool.yaml",
        Test("tests/src/demo/steps.rs", "\"examples/minimal-pool.yaml\""),
    ),
    (
        "kubectl apply -f examples/task-enabled-pool.yaml",
        Test("tests/tests/walk.rs", "\"task-enabled-pool.yaml\""),
    ),
    (
        "kubectl apply -f examples/batch-sandbox.yaml",
        Test("tests/tests/walk.rs", "\"batch-sandbox.yaml\""),
    ),
    (
        "kubectl apply -f examples/failing-task.yaml",
        Test("tests/tests/walk.rs", "\"failing-task.yaml\""),
    ),
    (
        "kubectl get pool minimal-pool -o jsonpath='{.spec.template.spec.containers[*].name}'",
        Test(
            "tests/tests/admission/seed.rs",
            "names(&minimal) == [\"sandbox\", \"task-executor\"]",
        ),
    ),
    (
        "kubectl get batchsandbox task-batch-sandbox -o wide",
        Test("tests/tests/walk.rs", "get {SANDBOX} -o wide"),
    ),
    (
        "kubectl annotate pool * --overwrite sandbox.opensandbox.io/task-executor-upgrade=*",
        Test(
            "tests/src/demo/steps.rs",
            "format!(\"{INJECTION_UPGRADE}=v1.0.0\")",
        ),
    ),
    (
        "kubectl annotate pool NAME sandbox.opensandbox.io/task-executor-mode=in-container",
        Test("tests/tests/sandboxes/restricted.rs", "{}=in-container"),
    ),
    (
        "kubectl annotate pool NAME sandbox.opensandbox.io/task-executor-mode-",
        Test(
            "tests/tests/admission/modes.rs",
            "format!(\"{}-\", labels::EXECUTOR_MODE)",
        ),
    ),
    // The command line.
    (
        "opensandbox-webhook inject -f *",
        Test("tests/tests/admission/offline.rs", "[\"inject\", \"-f\""),
    ),
    (
        "opensandbox-webhook uninject -f *",
        Test("tests/tests/admission/offline.rs", "[\"uninject\", \"-f\""),
    ),
    (
        "opensandbox-webhook validate -f *",
        Test("webhook/tests/cli/findings.rs", "[\"validate\", \"-f\""),
    ),
    (
        "kubectl get pool * -o yaml | opensandbox-webhook explain",
        Test(
            "tests/tests/admission/offline.rs",
            "[\"explain\", \"-f\", \"-\"]",
        ),
    ),
    (
        "kubectl get pools,batchsandboxes --all-namespaces -o yaml | opensandbox-webhook validate",
        Test("webhook/tests/cli/findings.rs", "run(&[\"validate\"]"),
    ),
    // Looking: as printed, on a real node.
    ("kubectl get pods *", Walk),
    ("kubectl get pod POD -o jsonpath=*", Walk),
    ("kubectl describe pod POD", Walk),
    ("kubectl logs POD -c *", Walk),
    (
        "kubectl exec POD -c task-executor -- /task-executor doctor",
        Walk,
    ),
    ("kubectl get pools*", Walk),
    ("kubectl describe pool NAME", Walk),
    ("kubectl get batchsandbox *", Walk),
    ("kubectl get batchsandboxes *", Walk),
    ("kubectl describe batchsandbox *", Walk),
    ("kubectl -n opensandbox-system get deployment *", Walk),
    ("kubectl -n opensandbox-system get lease *", Walk),
    ("kubectl get mutatingwebhookconfiguration *", Walk),
    (
        "kubectl -n opensandbox-system get certificates,secrets",
        Outside("cert-manager's kinds"),
    ),
    (
        "kubectl -n opensandbox-system logs deployment/*",
        Test("tests/tests/release.rs", "logs deployment/{name}"),
    ),
    (
        "kubectl -n opensandbox-system port-forward *",
        Outside("the programs run as processes here; kubectl's own"),
    ),
    (
        "curl localhost:8080/readyz",
        Test("tests/src/installation.rs", "\"/readyz\""),
    ),
    // Keys and authorities.
    (
        "kubectl -n opensandbox-system annotate secret opensandbox-webhook-ca *",
        Test("tests/tests/certificates/authority.rs", "\"{}/rotate\""),
    ),
    (
        "kubectl -n opensandbox-system annotate secret opensandbox-task-executor-key *",
        Test(
            "tests/tests/operator/keys.rs",
            "\"sandbox.opensandbox.io/rotate\"",
        ),
    ),
    (
        "kubectl -n opensandbox-system patch secret opensandbox-task-executor-key --type=merge -p *",
        Test(
            "tests/tests/operator/keys.rs",
            "{\"data\": {\"retired-1.pkcs8\": null}}",
        ),
    ),
    // Switching over and back.
    (
        "kubectl -n opensandbox-system scale deployment opensandbox-controller-manager *",
        Outside("upstream's Deployment; tests/tests/takeover stops and starts its program"),
    ),
    (
        "kubectl apply --server-side --force-conflicts -k config/default",
        Test("tests/tests/takeover/site.rs", "--force-conflicts"),
    ),
    (
        "kubectl -n opensandbox-system delete deployment *",
        Outside("the programs run as processes here; tests/tests/takeover stops them"),
    ),
    // Benchmarks.
    (
        "cargo bench --package opensandbox-webhook --bench handler",
        Test(
            "justfile",
            "cargo bench --locked --package opensandbox-webhook --bench handler",
        ),
    ),
    (
        "cargo bench --package opensandbox-tests --bench admission_tls*",
        Test("tests/benches/admission_tls/main.rs", "seconds"),
    ),
    (
        "cargo bench --package opensandbox-tests --bench executor*",
        Test("tests/benches/executor/main.rs", "upstream_executor"),
    ),
    (
        "cargo bench --package opensandbox-tests --bench operator*",
        Test("tests/benches/operator/main.rs", "against"),
    ),
];

/// A command as it is printed.
#[derive(Clone, Debug)]
pub struct Command {
    /// `PATH:LINE` of its block.
    pub place: String,
    /// The command, without what is said behind it.
    pub text: String,
    /// What the document says that it prints: the comments below it.
    pub prints: Vec<String>,
}

/// Every command of the blocks of shell in the pages that users read.
///
/// # Errors
/// A page cannot be read.
pub fn commands() -> Result<Vec<Command>> {
    let mut commands: Vec<Command> = Vec::new();
    let pages = Page::all()?;
    // Decisions say what was decided, and print nothing to type.
    let pages = pages
        .iter()
        .filter(|page| !page.path.starts_with("docs/decisions"));
    for block in pages.flat_map(Page::blocks) {
        if !["sh", "bash"].contains(&block.language.as_str()) {
            continue;
        }
        let begin = commands.len();
        for line in block.text.replace("\\\n", " ").lines() {
            let line = line.trim();
            if let Some(printed) = line.strip_prefix("# ") {
                if let Some(command) = commands.get_mut(begin..).and_then(<[_]>::last_mut) {
                    command.prints.push(printed.to_owned());
                }
            } else if !line.is_empty() {
                // What is said behind a command stands apart.
                let text = line.split("  #").next().unwrap_or(line);
                let text = text.split(" # ").next().unwrap_or(text);
                commands.push(Command {
                    place: block.place.clone(),
                    text: text.trim().trim_end_matches(" &").to_owned(),
                    prints: Vec::new(),
                });
            }
        }
    }
    Ok(commands)
}

/// The row of a command.
pub fn run_of(command: &str) -> Option<&'static (&'static str, Run)> {
    RUNS.iter().find(|(pattern, _)| fits(pattern, command))
}

/// Whether `*` of the pattern can be filled so that it is the text.
fn fits(pattern: &str, text: &str) -> bool {
    let mut parts = pattern.split('*');
    let Some(mut rest) = text.strip_prefix(parts.next().unwrap_or_default()) else {
        return false;
    };
    let parts: Vec<_> = parts.collect();
    let Some((last, middle)) = parts.split_last() else {
        return rest.is_empty();
    };
    for part in middle {
        let Some((_, after)) = rest.split_once(part) else {
            return false;
        };
        rest = after;
    }
    rest.ends_with(last)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_fit_whole_commands() {
        assert!(fits("get pods", "get pods"));
        assert!(!fits("get pods", "get pods -o wide"));
        assert!(fits("get * -o *", "get pods -o wide"));
        assert!(!fits("get * -o *", "get pods"));
        assert!(fits("get pod *=x", "get pod a=x"));
        assert!(!fits("get pod *=x", "get pod a=xy"));
    }
}
