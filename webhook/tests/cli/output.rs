//! `inject` and `uninject`: what comes out, byte for byte where nothing changes.

use std::io::Read as _;
use std::process::{Output, Stdio};

use serde_json::{Value, json};

use super::{
    BASIC, DEPLOYMENT, SEED_IMAGES, files, fine, names, objects, opted_out, program, run, run_in,
    task_enabled,
};

#[test]
fn the_seeds_basic_pool_gets_the_executor() {
    let out = fine(&["inject"], BASIC);
    let pool = &objects(&out)[0];
    assert_eq!(names(pool), ["sandbox-container", "task-executor"]);
    let spec = &pool["spec"]["template"]["spec"];
    assert_eq!(spec["shareProcessNamespace"], true);
    assert_eq!(
        spec["containers"][1]["securityContext"],
        json!({"capabilities": {"add": ["SYS_PTRACE"]}})
    );
    assert_eq!(
        spec["containers"][1]["image"],
        "opensandbox.io/task-executor:v0.0.1"
    );
    assert_eq!(
        fine(&["inject"], &out),
        out,
        "injected again, not a byte changes"
    );
}

#[test]
fn uninject_after_inject_gives_the_input_back() {
    for input in [BASIC.to_owned(), task_enabled(), opted_out()] {
        let injected = fine(&["inject"], &input);
        assert_eq!(objects(&fine(&["uninject"], &injected)), objects(&input));
    }
    assert_eq!(
        fine(&["uninject"], BASIC),
        BASIC,
        "without a record the text stays"
    );
}

#[test]
fn the_examples_are_sound_and_come_back() {
    let examples = concat!(env!("CARGO_MANIFEST_DIR"), "/../examples");
    fine(&["validate", "-R", "-f", examples], "");
    let as_written = objects(&fine(
        &["inject", "-f", examples, "--injection-default", "disabled"],
        "",
    ));
    let injected = fine(&["inject", "-f", examples], "");
    assert_ne!(objects(&injected), as_written);
    // Pools that ask for the executor by their label get it either way.
    let bare = objects(&fine(&["uninject"], &injected));
    assert_eq!(bare, objects(&fine(&["uninject", "-f", examples], "")));
    assert_eq!(bare.len(), as_written.len());
}

#[test]
fn what_is_not_changed_keeps_its_bytes() {
    let head = format!(
        "# head\n---\n{DEPLOYMENT}---\n# nothing here\n---\n{}",
        opted_out()
    );
    assert_eq!(fine(&["inject"], &head), head);
    let input = format!("{head}---\n# before the pool\n{BASIC}# after the pool\n---\n{DEPLOYMENT}");
    let out = fine(&["inject"], &input);
    assert!(
        out.starts_with(&format!("{head}---\n# before the pool\napiVersion: ")),
        "{out}"
    );
    assert!(
        out.ends_with(&format!("# after the pool\n---\n{DEPLOYMENT}")),
        "{out}"
    );
    let windows = DEPLOYMENT.replace('\n', "\r\n");
    assert_eq!(fine(&["inject"], &windows), windows);
}

#[test]
fn texts_stay_texts() {
    let odd = "        env:\n        - {name: A, value: \"yes\"}\n        - {name: B, value: \"1_000\"}\n        - {name: C, value: \"2024-01-01\"}\n        - {name: D, value: \"0x10\"}\n        - name: E\n          value: |\n            a: 1\n            # b\n";
    let input = BASIC.replace(
        "        resources:\n",
        &format!("{odd}        resources:\n"),
    );
    let out = fine(&["inject", "-o", "json"], &input);
    let pool: Value = serde_json::from_str(&out).unwrap();
    let env = |pool: &Value| -> Vec<String> {
        let env = pool["spec"]["template"]["spec"]["containers"][0]["env"]
            .as_array()
            .unwrap();
        env.iter()
            .map(|variable| variable["value"].as_str().unwrap().to_owned())
            .collect()
    };
    let expected = ["yes", "1_000", "2024-01-01", "0x10", "a: 1\n# b\n"];
    assert_eq!(env(&pool), expected);
    let yaml = fine(&["inject"], &input);
    assert_eq!(env(&objects(&yaml)[0]), expected);
    for quoted in ["\"yes\"", "\"1_000\"", "\"2024-01-01\"", "\"0x10\""] {
        assert!(yaml.contains(quoted), "{quoted}: {yaml}");
    }
}

#[test]
fn config_maps_and_namespaces_take_effect_for_the_pools_after_them() {
    let image = |arguments: &[&str], input: &str| -> Vec<String> {
        let out = fine(arguments, input);
        let pools = objects(&out);
        let pools = pools.iter().filter(|object| object["kind"] == "Pool");
        pools
            .map(|pool| {
                pool["spec"]["template"]["spec"]["containers"][1]["image"]
                    .as_str()
                    .unwrap_or("none")
                    .to_owned()
            })
            .collect()
    };
    let input = format!(
        "{BASIC}---\n{SEED_IMAGES}---\n{}",
        BASIC.replace("basic-pool", "second")
    );
    let expected = [
        "opensandbox.io/task-executor:v0.0.1",
        "your-registry/opensandbox-task-executor:v1.0.0",
    ];
    assert_eq!(image(&["inject"], &input), expected);
    assert_eq!(
        image(&["inject", "--task-executor-image", "other:1"], &input),
        ["other:1", expected[1]]
    );

    let elsewhere = format!(
        "{}---\n{BASIC}",
        SEED_IMAGES.replace("namespace: default", "namespace: system")
    );
    assert_eq!(
        image(
            &["inject", "--installation-namespace", "system"],
            &elsewhere
        ),
        [expected[1]]
    );
    assert_eq!(image(&["inject"], &elsewhere), [expected[0]]);

    let unnamed = format!(
        "{}---\n{}",
        SEED_IMAGES.replace("  namespace: default\n", ""),
        BASIC.replace("  namespace: default\n", "")
    );
    assert_eq!(image(&["inject", "-n", "mine"], &unnamed), [expected[1]]);

    let namespace = "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: default\n  labels:\n    sandbox.opensandbox.io/task-executor: disabled\n";
    assert_eq!(
        image(&["inject"], &format!("{namespace}---\n{BASIC}")),
        ["none"]
    );
    assert_eq!(
        image(&["inject"], &format!("{BASIC}---\n{namespace}")),
        [expected[0]]
    );
    assert_eq!(
        image(&["inject", "--injection-default", "disabled"], BASIC),
        ["none"]
    );
}

#[test]
fn files_and_directories_are_read_in_order() {
    let directory = files(&[
        ("b.yaml", BASIC),
        ("a.yml", SEED_IMAGES),
        ("c.txt", "a: [\n"),
        ("d.json", "{\"kind\": \"X\", \"apiVersion\": \"v1\"}"),
    ]);
    let (status, out, log) = run_in(directory.path(), &["inject", "-f", "."], "");
    assert_eq!(status, 0, "{log}");
    let found = objects(&out);
    assert_eq!(
        found
            .iter()
            .map(|object| object["kind"].as_str().unwrap())
            .collect::<Vec<_>>(),
        ["ConfigMap", "Pool", "X"]
    );
    assert_eq!(
        found[1]["spec"]["template"]["spec"]["containers"][1]["image"],
        "your-registry/opensandbox-task-executor:v1.0.0"
    );
    let (_, other, _) = run_in(
        directory.path(),
        &["inject", "-f", "b.yaml", "-f", "-"],
        SEED_IMAGES,
    );
    assert_eq!(
        objects(&other)[0]["spec"]["template"]["spec"]["containers"][1]["image"],
        "opensandbox.io/task-executor:v0.0.1"
    );
}

#[test]
fn lists_are_handled_item_by_item() {
    let item = |name: &str| {
        BASIC
            .replace("basic-pool", name)
            .lines()
            .enumerate()
            .fold(String::new(), |text, (index, line)| {
                text + if index == 0 { "- " } else { "  " } + line + "\n"
            })
    };
    let list = format!(
        "apiVersion: v1\nkind: List\nitems:\n{}- {{apiVersion: v1, kind: Secret}}\n{}",
        item("one"),
        item("two")
    );
    let out = fine(&["inject"], &list);
    let found = &objects(&out)[0];
    assert_eq!(found["kind"], "List");
    assert_eq!(
        names(&found["items"][0]),
        ["sandbox-container", "task-executor"]
    );
    assert_eq!(
        names(&found["items"][2]),
        ["sandbox-container", "task-executor"]
    );
    let patches = fine(&["inject", "-o", "patch"], &list);
    let lines: Vec<Value> = patches
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    assert_eq!(
        lines
            .iter()
            .map(|line| (&line["items"][0], &line["name"]))
            .collect::<Vec<_>>(),
        [(&json!(1), &json!("one")), (&json!(3), &json!("two"))]
    );
    let wrong = list.replacen("bufferMin: 2", "bufferMin: 11", 1);
    let (status, _, log) = run(&["validate"], &wrong);
    assert_eq!(status, 1);
    assert!(
        log.contains("stdin: document 1, item 1 (Pool default/one): spec.capacitySpec"),
        "{log}"
    );
}

#[test]
fn json_is_read_and_printed() {
    let json_pool = fine(
        &["inject", "-o", "json", "--injection-default", "disabled"],
        BASIC,
    );
    let value: Value = serde_json::from_str(&json_pool).unwrap();
    assert_eq!(value, objects(BASIC)[0]);
    assert_eq!(
        objects(&fine(&["inject"], &json_pool)),
        objects(&fine(&["inject"], BASIC))
    );
    let list: Value = serde_json::from_str(&fine(
        &["inject", "-o", "json"],
        &format!("{BASIC}---\n---\n{DEPLOYMENT}"),
    ))
    .unwrap();
    assert_eq!(
        (
            list["kind"].as_str(),
            list["items"].as_array().map(Vec::len)
        ),
        (Some("List"), Some(2))
    );
}

#[test]
fn a_patch_leads_to_the_same_result() {
    let line = fine(
        &["inject", "-o", "patch"],
        &format!("{DEPLOYMENT}---\n{BASIC}"),
    );
    let line: Value = serde_json::from_str(&line).unwrap();
    assert_eq!(
        (
            &line["document"],
            &line["kind"],
            &line["namespace"],
            &line["name"]
        ),
        (
            &json!(2),
            &json!("Pool"),
            &json!("default"),
            &json!("basic-pool")
        )
    );
    let patch: json_patch::Patch = serde_json::from_value(line["patch"].clone()).unwrap();
    let mut pool = objects(BASIC).remove(0);
    json_patch::patch(&mut pool, &patch).unwrap();
    let injected = fine(&["inject"], BASIC);
    assert_eq!(pool, objects(&injected)[0]);
    let back: Value = serde_json::from_str(&fine(&["uninject", "-o", "patch"], &injected)).unwrap();
    let patch: json_patch::Patch = serde_json::from_value(back["patch"].clone()).unwrap();
    json_patch::patch(&mut pool, &patch).unwrap();
    assert_eq!(pool, objects(BASIC)[0]);
    assert_eq!(fine(&["inject", "-o", "patch"], &injected), "");
}

#[test]
fn a_reader_that_leaves_early_is_no_failure() {
    let mut input = String::new();
    while input.len() < 1 << 20 {
        input.push_str(DEPLOYMENT);
        input.push_str("---\n");
    }
    let directory = files(&[("a.yaml", &input)]);
    let mut child = program()
        .args(["inject", "-f", "a.yaml"])
        .current_dir(directory.path())
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut out = child.stdout.take().unwrap();
    out.read_exact(&mut [0; 10]).unwrap();
    drop(out);
    let Output { status, stderr, .. } = child.wait_with_output().unwrap();
    assert_eq!(
        (status.code(), String::from_utf8(stderr).unwrap().as_str()),
        (Some(0), "")
    );
}
