use super::*;

const UID: &str = "0d1b9f3e-6f0a-4c52-9c1c-3b1f1f0f7a11";

#[test]
fn labels_and_subdomains_follow_rfc_1123() {
    let long = "a".repeat(64);
    for (value, label, subdomain) in [
        ("a", true, true),
        ("task-executor", true, true),
        ("0-9", true, true),
        ("a.b", false, true),
        ("", false, false),
        ("A", false, false),
        ("a_b", false, false),
        ("-a", false, false),
        ("a-", false, false),
        ("a..b", false, false),
        (".a", false, false),
        ("a.", false, false),
        ("a.-b", false, false),
        ("ä", false, false),
        (&long, false, true),
    ] {
        assert_eq!(dns_label("name", value).is_ok(), label, "label {value:?}");
        assert_eq!(
            dns_subdomain("name", value).is_ok(),
            subdomain,
            "subdomain {value:?}"
        );
    }
    assert!(dns_subdomain("name", &"a".repeat(253)).is_ok());
    assert!(dns_subdomain("name", &"a".repeat(254)).is_err());
}

#[test]
fn label_values_may_be_empty_and_mixed() {
    for value in ["", "a", "A_b-c.D", "1"] {
        assert_eq!(label_value("label", value), Ok(()));
    }
    for value in ["_a", "a.", "a/b", "a b"] {
        assert!(label_value("label", value).is_err(), "{value:?}");
    }
    assert!(label_value("label", &"a".repeat(63)).is_ok());
    assert!(label_value("label", &"a".repeat(64)).is_err());
}

#[test]
fn our_keys_are_qualified() {
    for key in ["pool", "sandbox.opensandbox.io/pool-name", "a.b/C_d.e"] {
        assert_eq!(qualified_key("key", key), Ok(()));
    }
    for key in ["", "/a", "a/", "a/b/c", "A.b/c", "a..b/c", "a/-b", "a b"] {
        assert!(qualified_key("key", key).is_err(), "{key:?}");
    }
}

#[test]
fn names_of_pools_fit_a_label() {
    assert!("a".repeat(63).parse::<PoolName>().is_ok());
    assert_eq!(
        "a".repeat(64).parse::<PoolName>().unwrap_err().rule,
        Rule::TooLong {
            length: 64,
            max: 63
        }
    );
    // Every allowed name is a label value and makes a valid pod name.
    for name in ["a", "basic-pool", "a.b-c.d"] {
        let name: PoolName = name.parse().unwrap();
        assert_eq!(label_value("label", name.as_str()), Ok(()));
        assert!(name.pod_name("x7k2p").is_ok());
    }
}

#[test]
fn messages_name_rule_value_and_remedy() {
    let cases = [
        (
            "My_Pool",
            r#"Pool name "My_Pool": contains 'M'; use only lower case letters, digits, '-' and '.'"#,
        ),
        ("", r#"Pool name "": must not be empty; give it a value"#),
        (
            "pool-",
            r#"Pool name "pool-": must begin and end with a letter or digit, in each part between dots and slashes; remove or replace the '-' there"#,
        ),
    ];
    for (value, expected) in cases {
        assert_eq!(value.parse::<PoolName>().unwrap_err().to_string(), expected);
    }
    let long = "a"
        .repeat(300)
        .parse::<SandboxName>()
        .unwrap_err()
        .to_string();
    assert!(long.ends_with(r#"a"…: has 300 characters, at most 63 are allowed; shorten it"#));
    assert!(long.len() < 200);
}

#[test]
fn pods_and_tasks_are_named_by_index() {
    let name: SandboxName = "batch".parse().unwrap();
    assert_eq!(name.pod_name(0), "batch-0");
    assert_eq!(name.task_name(12).as_str(), "batch-12");
    assert_eq!(name.index_in("batch-12"), Some(12));
    for other in [
        "batch",
        "batch-",
        "batch-x",
        "batch-012",
        "batch-+1",
        "batch-1-2",
        "other-1",
    ] {
        assert_eq!(name.index_in(other), None, "{other}");
    }
    let longest: SandboxName = "a".repeat(63).parse().unwrap();
    let pod = longest.pod_name(u32::MAX);
    assert_eq!(dns_subdomain("pod name", &pod), Ok(()));
    assert!(host_name_is_cut(&pod));
    assert!(!host_name_is_cut("batch-0"));
}

#[test]
fn task_names_stay_in_their_directory() {
    for name in ["batch-0", "My task", "..a", "a:b"] {
        assert!(name.parse::<TaskName>().is_ok(), "{name:?}");
    }
    for name in ["", ".", "..", "a/b", "/a", "a\nb", "a\0b"] {
        assert!(name.parse::<TaskName>().is_err(), "{name:?}");
    }
}

#[test]
fn identities_round_trip() {
    let text = format!("{UID}.3.1");
    let identity: TaskIdentity = text.parse().unwrap();
    assert_eq!(
        identity,
        TaskIdentity {
            sandbox: UID.parse().unwrap(),
            index: 3,
            attempt: 1
        }
    );
    assert_eq!(identity.to_string(), text);
    let json = serde_json::to_string(&identity).unwrap();
    assert_eq!(json, format!("{text:?}"));
    assert_eq!(
        serde_json::from_str::<TaskIdentity>(&json).unwrap(),
        identity
    );
    for other in [
        "",
        UID,
        "a.1",
        "a.b.1",
        "a.1.",
        ".1.1",
        "a.01.1",
        "a.+1.1",
        "a.1.4294967296",
        "a/b.1.1",
    ] {
        assert!(other.parse::<TaskIdentity>().is_err(), "{other:?}");
    }
}

#[test]
fn names_are_checked_when_read() {
    assert!(serde_json::from_str::<PoolName>("\"ok\"").is_ok());
    assert!(serde_json::from_str::<PoolName>("\"Not OK\"").is_err());
}
