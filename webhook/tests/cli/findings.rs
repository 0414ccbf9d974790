//! `validate`, `explain`, and what is said about wrong input.

use serde_json::{Value, json};

use super::{BASIC, DEPLOYMENT, SEED_IMAGES, files, fine, opted_out, run, run_in, task_enabled};

#[test]
fn one_wrong_document_of_several_is_named_and_nothing_is_printed() {
    let wrong = BASIC
        .replace("bufferMin: 2", "bufferMin: -2")
        .replace("poolMax: 20", "poolMax: 1")
        .replace("basic-pool", "wrong");
    let directory = files(&[(
        "pools.yaml",
        &format!("{BASIC}---\n{wrong}---\n{DEPLOYMENT}"),
    )]);
    for command in ["inject", "validate"] {
        let (status, out, log) = run_in(directory.path(), &[command, "-f", "pools.yaml"], "");
        assert_eq!(status, 1, "{command}");
        assert!(log.contains("pools.yaml: document 2 (Pool default/wrong): spec.capacitySpec.bufferMin: Invalid value: -2: "), "{log}");
        assert!(
            log.lines().count() >= 2 && !log.contains("document 1"),
            "all problems, and only of the wrong one: {log}"
        );
        if command == "inject" {
            assert_eq!(out, "");
        } else {
            assert_eq!(
                out,
                "2 Pools, 0 BatchSandboxes and 1 other object in 1 file: 2 problems, 0 warnings\n"
            );
        }
    }
}

#[test]
fn unreadable_documents_are_named_with_their_line() {
    let directory = files(&[("a.yaml", &format!("{BASIC}---\nkind: Pool\nkind: Pool\n"))]);
    for command in ["inject", "uninject", "validate", "explain"] {
        let (status, _, log) = run_in(directory.path(), &[command, "-f", "a.yaml"], "");
        assert_eq!(status, 1, "{command}: {log}");
        let expected = format!(
            "a.yaml: document 2: line {}, column 1: key \"kind\" stands twice in the same object\n",
            BASIC.lines().count() + 3
        );
        assert!(log.contains(&expected), "{command}: {log}");
    }
    for bad in [
        "a:\n\tb: 1\n".to_owned(),
        "a: [".to_owned(),
        "[".repeat(100_000),
        "a: &a [*a]\n".to_owned(),
        "{\"a\": ".to_owned(),
    ] {
        let (status, out, log) = run(&["inject"], &bad);
        assert_eq!((status, out.as_str()), (1, ""), "{log}");
        assert!(
            log.starts_with("stdin: document 1: ") && log.len() < 500,
            "{log}"
        );
    }
}

#[test]
fn what_cannot_be_carried_out_has_another_status() {
    let empty = files(&[]);
    for arguments in [
        &["inject", "-f", "missing.yaml"][..],
        &["validate", "-f", "."],
        &["inject", "-f", "-", "-f", "-"],
    ] {
        let (status, out, log) = run_in(empty.path(), arguments, "");
        assert_eq!((status, out.as_str()), (2, ""), "{arguments:?}: {log}");
        assert!(log.starts_with("error: "), "{log}");
    }
    let (_, _, log) = run_in(empty.path(), &["inject", "-f", "missing.yaml"], "");
    assert!(
        log.starts_with("error: cannot read missing.yaml: "),
        "{log}"
    );
    assert_eq!(run(&["inject", "--output", "xml"], "").0, 2);
    assert_eq!(run(&["inject", "--task-executor-image", "a b"], BASIC).0, 2);
}

#[test]
fn batch_sandboxes_are_validated_and_warnings_count_with_strict() {
    let sandbox = "apiVersion: sandbox.opensandbox.io/v1alpha1\nkind: BatchSandbox\nmetadata: {name: b}\nspec: {replicas: 1, poolRef: p, ttlSecondsAfterFinished: 5}\n";
    let (status, out, log) = run(&["validate"], sandbox);
    assert_eq!(status, 0);
    assert!(
        log.starts_with(
            "warning: stdin: document 1 (BatchSandbox default/b): spec.ttlSecondsAfterFinished"
        ),
        "{log}"
    );
    assert_eq!(
        out,
        "0 Pools, 1 BatchSandbox and 0 other objects in 1 file: 0 problems, 1 warning\n"
    );
    assert_eq!(run(&["validate", "--strict"], sandbox).0, 1);
    let (status, _, log) = run(&["validate"], &sandbox.replace("poolRef: p", "pause: true"));
    assert_eq!(status, 1);
    assert!(
        log.contains(": spec.pause: ") && log.contains(": spec: "),
        "{log}"
    );
}

#[test]
fn what_is_no_object_is_passed_through_with_a_warning() {
    let (status, out, log) = run(&["inject"], "just a text\n");
    assert_eq!((status, out.as_str()), (0, "just a text\n"));
    assert_eq!(
        log,
        "warning: stdin: document 1: has neither apiVersion nor kind and is not looked at\n"
    );
}

#[test]
fn explain_names_decision_main_container_and_every_origin() {
    let input = format!("{SEED_IMAGES}---\n{BASIC}");
    let out = fine(&["explain"], &input);
    assert!(
        out.starts_with("Pool default/basic-pool (stdin: document 2)\n"),
        "{out}"
    );
    assert!(
        out.contains("injected: enabled by the default of the installation"),
        "{out}"
    );
    assert!(
        out.contains("main container:   sandbox-container\n")
            || out.contains("main container: sandbox-container\n"),
        "{out}"
    );
    let lines: Vec<&str> = out.lines().collect();
    let at = lines
        .iter()
        .position(|line| line.trim() == "spec.template.spec.containers[task-executor].image")
        .unwrap();
    assert_eq!(
        lines[at + 1].trim(),
        "your-registry/opensandbox-task-executor:v1.0.0"
    );
    assert_eq!(
        lines[at + 2].trim(),
        "<- ConfigMap default/opensandbox-images, key taskExecutorImage"
    );
    for line in &lines {
        assert!(
            line.chars().count() <= 80 || line.trim_start().starts_with("spec.template"),
            "{line}"
        );
    }
    assert!(
        fine(&["explain"], &opted_out())
            .contains("not injected: disabled by the label on the Pool")
    );
    assert_eq!(fine(&["explain"], DEPLOYMENT), "no Pool in the input\n");
}

#[test]
fn explain_tells_the_same_before_and_after() {
    let explained = |input: &str| -> Value {
        let out: Value = serde_json::from_str(&fine(&["explain", "-o", "json"], input)).unwrap();
        out["pools"][0].clone()
    };
    for input in [BASIC.to_owned(), task_enabled()] {
        let before = explained(&input);
        let after = explained(&fine(&["inject"], &input));
        assert_eq!(
            (&before["fromRecord"], &after["fromRecord"]),
            (&json!(false), &json!(true))
        );
        for same in ["values", "mainContainer", "injected", "name", "namespace"] {
            assert_eq!(before[same], after[same], "{same}");
        }
    }
    let own = explained(&task_enabled());
    let origin = |path: &str| {
        let rows = own["values"].as_array().unwrap();
        rows.iter()
            .find(|row| row["path"] == path)
            .map(|row| row["origin"].as_str().unwrap())
            .unwrap()
    };
    assert_eq!(origin("spec.template.spec.shareProcessNamespace"), "Pool");
    assert_eq!(
        origin("spec.template.spec.containers[task-executor].image"),
        "Pool"
    );
    assert_eq!(
        origin("spec.template.spec.containers[task-executor].env[MAIN_CONTAINER_NAME]"),
        "default"
    );
    let switched_off = fine(&["inject"], BASIC).replace(
        "  annotations:\n",
        "  labels: {sandbox.opensandbox.io/task-executor: disabled}\n  annotations:\n",
    );
    let explained = explained(&switched_off);
    assert_eq!(explained["injected"], true, "nothing is taken away");
    assert_eq!(
        explained["decision"],
        "not injected: disabled by the label on the Pool; what was added before stays"
    );
    let refused = BASIC.replace("bufferMin: 2", "bufferMin: 11");
    let (status, out, _) = run(&["explain"], &refused);
    assert_eq!(status, 1);
    assert!(
        out.contains("problem:") && out.contains("spec.capacitySpec"),
        "{out}"
    );
}
