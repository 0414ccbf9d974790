use serde_json::{Value, json};

use super::*;

/// Reads as `T`, writes again, and compares.
fn round_trips<T: serde::de::DeserializeOwned + Serialize>(text: &str) {
    let read: T = serde_json::from_str(text).unwrap();
    assert_eq!(serde_json::to_string(&read).unwrap(), text);
}

#[test]
fn upstream_tasks_round_trip_to_the_byte() {
    for text in [
        r#"{"name":"a-0","process":{"command":["sh","-c"],"args":["echo"],"env":[{"name":"A","value":"1"},{"name":"B"},{"name":"C","valueFrom":{"fieldRef":{"fieldPath":"metadata.name"}}}],"workingDir":"/w","timeoutSeconds":60},"processStatus":{"waiting":{"reason":"Pending"}}}"#,
        r#"{"name":"a-1","process":{"command":["ls"]},"processStatus":{"running":{"startedAt":"2026-06-15T09:00:00Z"}}}"#,
        r#"{"name":"a-2","processStatus":{"terminated":{"exitCode":137,"reason":"TaskTimeout","startedAt":"2026-06-15T09:00:00Z","finishedAt":"2026-06-15T09:00:00Z"}}}"#,
        r#"{"name":"a-3","processStatus":{"terminated":{"exitCode":0,"reason":"Succeeded","startedAt":null,"finishedAt":null}}}"#,
        r#"{"name":"a-4","deletionTimestamp":"2026-06-15T09:00:00Z","processStatus":{"running":{"startedAt":null}}}"#,
        r#"{"name":"a-5","processStatus":{"waiting":{}}}"#,
        r#"{"name":"a-6","podTemplateSpec":{"metadata":{},"spec":{"containers":null}}}"#,
    ] {
        round_trips::<Task>(text);
    }
    round_trips::<ErrorBody>(r#"{"code":"Bad Request","message":"task name is required"}"#);
    round_trips::<Health>(r#"{"status":"healthy"}"#);
}

#[test]
fn our_fields_round_trip() {
    round_trips::<Task>(
        r#"{"name":"a-0","uid":"u.0.1","containerId":"containerd://ab","process":{"command":["ls"],"gracePeriodSeconds":3},"processStatus":{"terminated":{"exitCode":139,"signal":11,"reason":"Failed","message":"ended by signal 11, core dumped","startedAt":null,"finishedAt":null}},"outcome":{"end":{"kind":"signaled","signal":11,"coreDumped":true},"durationMillis":12}}"#,
    );
    round_trips::<Outcome>(
        r#"{"end":{"kind":"exited","code":0},"oomKilled":true,"timedOut":true,"stoppedBy":"Timeout"}"#,
    );
    round_trips::<Outcome>(
        r#"{"end":{"kind":"notStarted","failure":"BadWorkingDirectory","message":"chdir /x: No such file or directory"}}"#,
    );
    round_trips::<Outcome>(r#"{"end":{"kind":"lost","reason":"AgentKilled","message":""}}"#);
}

#[test]
fn null_and_absent_read_alike_everywhere() {
    let nulls = json!({
        "name": null, "uid": null, "containerId": null, "deletionTimestamp": null,
        "process": {"command": null, "args": null, "env": [{"name": null, "value": null, "valueFrom": null}], "workingDir": null, "timeoutSeconds": null, "gracePeriodSeconds": null},
        "podTemplateSpec": null,
        "processStatus": {"waiting": {"reason": null, "message": null}, "running": null, "terminated": {"exitCode": null, "signal": null, "reason": null, "message": null, "startedAt": null, "finishedAt": null}},
        "podStatus": null, "outcome": null,
    });
    let absent = json!({
        "process": {"env": [{}]}, "processStatus": {"waiting": {}, "terminated": {}},
    });
    let read = |value: Value| serde_json::from_value::<Task>(value).unwrap();
    assert_eq!(read(nulls), read(absent));
    assert_eq!(read(json!({})), Task::default());
}

#[test]
fn unknown_fields_and_words_are_tolerated() {
    let task: Task = serde_json::from_value(json!({
        "name": "a", "new": {"x": 1},
        "process": {"command": ["ls"], "execMode": "Local", "lifecycle": {"preStart": {}}},
        "outcome": {"end": {"kind": "evaporated", "at": 100}, "stoppedBy": "Nobody", "new": 1},
    }))
    .unwrap();
    let outcome = task.outcome.unwrap();
    assert_eq!(outcome.end, End::Unknown);
    assert_eq!(outcome.stopped_by, Some(StoppedBy::Other));
    assert_ne!(outcome.exit_code(), 0);
    let event = WatchEvent::from_line(r#"{"type":"rewound","cursor":"5","by":3}"#).unwrap();
    assert_eq!((event.cursor(), &event), (None, &WatchEvent::Unknown));
}

#[test]
fn lists_of_tasks_read_as_upstream_reads_them() {
    let names = |body: &str| {
        tasks_from_json(body.as_bytes())
            .map(|tasks| tasks.into_iter().map(|task| task.name).collect::<Vec<_>>())
    };
    assert_eq!(names("[]").unwrap(), [""; 0]);
    assert_eq!(names("null").unwrap(), [""; 0]);
    assert_eq!(names(r#"[null,{"name":"a"},{}]"#).unwrap(), ["a", ""]);
    for bad in [
        "",
        "{",
        "{}",
        "[1]",
        r#"[{"name":1}]"#,
        r#"[{"process":{"command":"ls"}}]"#,
        "[] x",
    ] {
        assert!(names(bad).is_err(), "{bad}");
    }
}

#[test]
fn nothing_secret_is_printed() {
    let task: Task = serde_json::from_value(json!({
        "name": "a",
        "process": {
            "command": ["curl", "-H", "s3cret"], "args": ["s3cret"],
            "env": [{"name": "TOKEN", "value": "s3cret"}, {"name": "B", "valueFrom": {"x": "s3cret"}}],
        },
        "podTemplateSpec": {"spec": "s3cret"}, "podStatus": "s3cret",
    }))
    .unwrap();
    let printed = format!("{task:?} {task:#?}");
    assert!(!printed.contains("s3cret"), "{printed}");
    assert!(
        printed.contains("TOKEN") && printed.contains("curl"),
        "{printed}"
    );

    let template: TaskTemplate = serde_json::from_value(json!({
        "spec": {"process": {"command": ["x", "s3cret"], "env": [{"name": "A", "value": "s3cret"}]}},
    }))
    .unwrap();
    assert!(!format!("{template:?}").contains("s3cret"));
    let event = WatchEvent::Added {
        cursor: "1".to_owned(),
        task: Box::new(task),
    };
    assert!(!format!("{event:?}").contains("s3cret"));
}

#[test]
fn outcomes_look_as_upstream_and_shells_have_them() {
    let exited = |code| Outcome::of(End::Exited { code });
    let signaled = |signal| {
        Outcome::of(End::Signaled {
            signal,
            core_dumped: false,
        })
    };
    let not_started = |failure| {
        Outcome::of(End::NotStarted {
            failure,
            message: "why".to_owned(),
        })
    };
    let lost = Outcome::of(End::Lost {
        reason: LossReason::AgentKilled,
        message: String::new(),
    });
    for (outcome, exit_code, signal, reason) in [
        (exited(0), 0, None, reason::SUCCEEDED),
        (exited(3), 3, None, reason::FAILED),
        (signaled(15), 143, Some(15), reason::FAILED),
        (
            not_started(StartFailure::NotFound),
            127,
            None,
            reason::START_FAILED,
        ),
        (
            not_started(StartFailure::NotExecutable),
            126,
            None,
            reason::START_FAILED,
        ),
        (
            not_started(StartFailure::NoTarget),
            125,
            None,
            reason::START_FAILED,
        ),
        (lost, 137, None, reason::PROCESS_CRASHED),
        (
            Outcome {
                oom_killed: true,
                ..signaled(9)
            },
            137,
            Some(9),
            reason::OOM_KILLED,
        ),
        // A child was killed for its memory, and the task coped.
        (
            Outcome {
                oom_killed: true,
                ..exited(0)
            },
            0,
            None,
            reason::SUCCEEDED,
        ),
        (
            Outcome {
                stopped_by: Some(StoppedBy::Request),
                ..signaled(15)
            },
            143,
            Some(15),
            reason::STOPPED,
        ),
        // It caught SIGTERM and left with 0: still not a success.
        (
            Outcome {
                timed_out: true,
                stopped_by: Some(StoppedBy::Timeout),
                ..exited(0)
            },
            137,
            None,
            reason::TASK_TIMEOUT,
        ),
        (Outcome::of(End::Unknown), 255, None, reason::UNKNOWN),
    ] {
        assert_eq!(outcome.exit_code(), exit_code, "{outcome:?}");
        assert_eq!(outcome.signal(), signal, "{outcome:?}");
        assert_eq!(outcome.reason(), reason, "{outcome:?}");
        let terminated = outcome.terminated(None, None);
        assert_eq!(
            terminated.reason == reason::SUCCEEDED,
            terminated.exit_code == 0
        );
        assert_eq!(terminated.signal, signal.unwrap_or(0));
        let text = serde_json::to_string(&outcome).unwrap();
        assert_eq!(serde_json::from_str::<Outcome>(&text).unwrap(), outcome);
    }
    assert_eq!(
        not_started(StartFailure::NotFound)
            .terminated(None, None)
            .message,
        "why"
    );
}

#[test]
fn states_follow_the_status() {
    let with = |status: Value| {
        serde_json::from_value::<Task>(json!({"name": "a", "processStatus": status}))
            .unwrap()
            .state()
    };
    assert_eq!(with(json!(null)), State::Waiting);
    assert_eq!(with(json!({})), State::Waiting);
    assert_eq!(
        with(json!({"waiting": {"reason": "Pending"}})),
        State::Waiting
    );
    assert_eq!(
        with(json!({"running": {"startedAt": null}})),
        State::Running
    );
    assert_eq!(
        with(json!({"terminated": {"exitCode": 0}})),
        State::Succeeded
    );
    assert_eq!(with(json!({"terminated": {"exitCode": 1}})), State::Failed);
    assert!(State::Failed.is_terminal() && !State::Running.is_terminal());

    let task = |status| Task {
        process_status: Some(status),
        ..Task::default()
    };
    assert_eq!(
        task(ProcessStatus::waiting("Pending", "")).state(),
        State::Waiting
    );
    assert_eq!(
        task(ProcessStatus::running("2026-06-15T09:00:00Z")).state(),
        State::Running
    );
    let terminated = Outcome::of(End::Exited { code: 0 }).terminated(None, None);
    assert_eq!(
        task(ProcessStatus::terminated(terminated)).state(),
        State::Succeeded
    );
}

#[test]
fn time_limits_have_defaults() {
    let process = |timeout, grace| Process {
        timeout_seconds: timeout,
        grace_period_seconds: grace,
        ..Process::default()
    };
    for (timeout, expected) in [
        (None, None),
        (Some(0), None),
        (Some(-1), None),
        (Some(7), Some(7)),
    ] {
        assert_eq!(
            process(timeout, None).timeout(),
            expected.map(Duration::from_secs)
        );
    }
    for (grace, expected) in [(None, 10), (Some(0), 0), (Some(-5), 0), (Some(3), 3)] {
        assert_eq!(
            process(None, grace).grace_period(),
            Duration::from_secs(expected)
        );
    }
}

#[test]
fn a_template_becomes_a_process() {
    let template: TaskTemplate = serde_json::from_value(json!({"spec": {
        "process": {"command": ["sh", "-c"], "args": ["ls"], "env": [{"name": "A", "value": "1"}], "workingDir": "/w"},
        "timeoutSeconds": 5, "gracePeriodSeconds": 1,
    }}))
    .unwrap();
    let process = template.process().unwrap();
    assert_eq!(process.argv().collect::<Vec<_>>(), ["sh", "-c", "ls"]);
    assert_eq!(process.env[0].value.expose(), "1");
    assert_eq!(
        (process.timeout_seconds, process.grace_period_seconds),
        (Some(5), Some(1))
    );
    assert_eq!(TaskTemplate::default().process(), None);
    assert_eq!(
        serde_json::from_str::<TaskTemplate>(r#"{"spec":null}"#)
            .unwrap()
            .process(),
        None
    );
}

#[test]
fn events_are_one_line_each() {
    let task = Task {
        name: "a\nb".to_owned(),
        ..Task::default()
    };
    for event in [
        WatchEvent::Reset {
            cursor: "i-0".to_owned(),
        },
        WatchEvent::Added {
            cursor: "i-1".to_owned(),
            task: Box::new(task.clone()),
        },
        WatchEvent::Modified {
            cursor: "i-2".to_owned(),
            task: Box::new(task.clone()),
        },
        WatchEvent::Deleted {
            cursor: "i-3".to_owned(),
            task: Box::new(task),
        },
        WatchEvent::Bookmark {
            cursor: "i-3".to_owned(),
        },
    ] {
        let line = event.to_line().unwrap();
        assert_eq!(line.find('\n'), Some(line.len() - 1));
        assert!(
            event
                .cursor()
                .is_some_and(|cursor| cursor.starts_with("i-"))
        );
        assert_eq!(WatchEvent::from_line(&line).unwrap(), event);
    }
    assert_eq!(
        WatchEvent::Bookmark {
            cursor: "7".to_owned()
        }
        .to_line()
        .unwrap(),
        "{\"type\":\"bookmark\",\"cursor\":\"7\"}\n"
    );
}

#[test]
fn errors_name_the_status_as_go_does() {
    let body = ErrorBody::new(413, "at most 8 MiB");
    assert_eq!(
        serde_json::to_value(body).unwrap(),
        json!({"code": "Request Entity Too Large", "message": "at most 8 MiB"})
    );
    assert_eq!(status_text(299), "");
}
