use opensandbox_api::sidecar::{InjectionDefault, Settings, Sourced};

use super::*;
use crate::view::parse;

fn facts(key: &str) -> InjectionFacts {
    let mut settings = Settings::built_in();
    settings.verification_key = Some(Sourced {
        value: key.to_owned(),
        origin: "test".to_owned(),
    });
    InjectionFacts {
        namespace_label: None,
        default: InjectionDefault::Enabled,
        settings,
    }
}

fn pool(executor: Option<Value>) -> Value {
    let mut containers = vec![json!({"name": "main", "image": "i:1"})];
    containers.extend(executor);
    json!({
        "metadata": {"name": "p", "namespace": "ns", "uid": "u"},
        "spec": {
            "template": {"spec": {"containers": containers}},
            "capacitySpec": {"bufferMin": 0, "bufferMax": 0, "poolMin": 0, "poolMax": 1},
        },
    })
}

/// The Pool as the webhook stores it.
fn stored(mut pool: Value, key: &str) -> Value {
    let facts = facts(key);
    let context = sidecar::pool::Context {
        namespace_label: None,
        default: facts.default,
        settings: &facts.settings,
    };
    let mutation = sidecar::pool::mutate(&pool, None, &context).unwrap();
    json_patch::patch(&mut pool, &mutation.operations).unwrap();
    pool
}

/// The key of a pod that is made, and how the Pool stands to the injection.
fn made(raw: &Value, key: &str) -> (Value, InjectionState) {
    let view = parse::pool(raw).unwrap();
    let (mold, state) = mold(&view, "r", &facts(key));
    let pod = mold.unwrap().pod("p-1");
    let containers = pod["spec"]["containers"].as_array().unwrap();
    let executor = containers
        .iter()
        .find(|one| one["name"] == labels::TASK_EXECUTOR)
        .unwrap();
    let env = executor["env"].as_array().unwrap();
    let entry = env
        .iter()
        .find(|one| one["name"] == labels::VERIFICATION_KEY_ENV)
        .unwrap();
    (entry["value"].clone(), state)
}

#[test]
fn pods_have_the_present_key_whatever_key_the_pool_was_stored_with() {
    let raw = stored(pool(None), "earlier");
    let (key, state) = made(&raw, "present");
    assert_eq!(key, "present");
    assert!(state.current, "{state:?}");
}

#[test]
fn pods_of_a_pool_that_was_stored_without_a_key_have_one() {
    let mut raw = stored(pool(None), "x");
    let containers = raw["spec"]["template"]["spec"]["containers"]
        .as_array_mut()
        .unwrap();
    let env = containers[1]["env"].as_array_mut().unwrap();
    env.retain(|entry| entry["name"] != labels::VERIFICATION_KEY_ENV);
    let (key, _) = made(&raw, "present");
    assert_eq!(key, "present");
}

#[test]
fn in_container_the_pod_is_wrapped_and_the_pool_stays_as_it_was_written() {
    let mut raw = pool(None);
    raw["metadata"]["annotations"] = json!({labels::EXECUTOR_MODE: "in-container"});
    let written = json!({"name": "main", "image": "i:1", "command": ["sleep", "1d"]});
    raw["spec"]["template"]["spec"]["containers"] = json!([written]);
    let raw = stored(raw, "earlier");
    let template = &raw["spec"]["template"];
    assert_eq!(template["spec"]["containers"], json!([written]));

    let view = parse::pool(&raw).unwrap();
    let (mold, state) = mold(&view, "r", &facts("present"));
    assert!(state.current, "{state:?}");
    let pod = mold.unwrap().pod("p-1");
    assert_eq!(
        pod["spec"]["initContainers"],
        template["spec"]["initContainers"]
    );
    let command = pod["spec"]["containers"][0]["command"].to_string();
    assert!(command.contains("--verification-key=present"), "{command}");
    assert!(command.ends_with(r#""--","sleep","1d"]"#), "{command}");
    assert!(!pod.to_string().contains("SYS_PTRACE"), "{pod}");
    assert_eq!(pod["spec"].get("shareProcessNamespace"), None);
}

#[test]
fn another_mode_is_another_revision_although_the_template_is_the_same() {
    let mut raw = pool(None);
    let template = raw["spec"]["template"].clone();
    let revision = |raw: &Value| revision(&parse::pool(raw).unwrap(), &template, &facts("present"));
    let sidecar = revision(&raw);
    assert_eq!(sidecar, template_hash(&template));
    raw["metadata"]["annotations"] = json!({labels::EXECUTOR_MODE: "in-container"});
    assert_ne!(revision(&raw), sidecar);
}

#[test]
fn a_template_without_a_command_is_not_guessed() {
    let mut raw = pool(None);
    raw["metadata"]["annotations"] = json!({labels::EXECUTOR_MODE: "in-container"});
    let view = parse::pool(&raw).unwrap();
    let (mold, state) = mold(&view, "r", &facts("present"));
    assert_eq!(state.reason, reason::INJECTION_IMPOSSIBLE);
    assert!(state.message.contains("containers[0].command"), "{state:?}");
    let pod = mold.unwrap().pod("p-1");
    assert_eq!(
        pod["spec"]["containers"][0],
        raw["spec"]["template"]["spec"]["containers"][0]
    );
}

#[test]
fn a_key_that_the_user_wrote_stays() {
    let executor = json!({
        "name": labels::TASK_EXECUTOR,
        "env": [{"name": labels::VERIFICATION_KEY_ENV, "value": "mine"}],
    });
    let (key, _) = made(&stored(pool(Some(executor)), "earlier"), "present");
    assert_eq!(key, "mine");
}
