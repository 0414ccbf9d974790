//! What the log shows.

use std::time::{Duration, Instant};

use proptest::prelude::*;
use task_executor::output::{Echo, EchoStream};

use super::support::{PATIENCE, Sink, generous};

/// The number in the lines that tell of bytes left out of a stream.
fn told(log: &str, name: &str, stream: &str) -> u64 {
    let (begin, end) = (
        format!("[{name}] "),
        format!(" bytes of {stream} left out here"),
    );
    let numbers = log
        .lines()
        .filter_map(|line| line.strip_prefix(&begin)?.strip_suffix(&end));
    numbers.map(|number| number.parse::<u64>().unwrap()).sum()
}

fn lines_of(log: &str, name: &str, stream: &str) -> Vec<String> {
    let begin = format!("[{name} {stream}] ");
    let lines = log.lines().filter_map(|line| line.strip_prefix(&begin));
    lines.map(ToOwned::to_owned).collect()
}

#[test]
fn lines_carry_the_name_of_their_task() {
    let (sink, now) = (Sink::default(), Instant::now());
    let echo = generous(&sink);
    let [mut stdout, mut stderr] = echo.streams("build");
    echo.say("build", "started, pid 12");
    stdout.push(b"compiling\nhalf", now);
    stderr.push(b"warning: \x1b[1mold\x1b[0m\n", now);
    stdout.push(b" a line\n", now);
    stdout.push(&[b'x'; 8200], now);
    stdout.push(b"\nend", now);
    stdout.flush(now);
    echo.say("a\n[b]", "two\nlines");
    let expected = format!(
        "[build] started, pid 12\n\
         [build stdout] compiling\n\
         [build stderr] warning: \\x1b[1mold\\x1b[0m\n\
         [build stdout] half a line\n\
         [build stdout] {}\n\
         [build stdout+] xxxxxxxx\n\
         [build stdout] end\n\
         [a\\x0a\\x5bb\\x5d] two\\x0alines\n",
        "x".repeat(8192)
    );
    assert_eq!(sink.text(&echo), expected);
    let counts = echo.counts();
    assert_eq!(
        (counts.shown, counts.left_out, counts.lost),
        (10 + 12 + 21 + 8201 + 3, 0, 0)
    );
    assert_eq!(counts.written, expected.len() as u64);
}

#[test]
fn a_line_without_end_is_shown_after_a_second() {
    let (sink, now) = (Sink::default(), Instant::now());
    let echo = generous(&sink);
    let [mut stdout, _] = echo.streams("ask");
    assert_eq!(stdout.due(), None);
    stdout.push(b"Name? ", now);
    assert_eq!(stdout.due(), Some(now + Duration::from_secs(1)));
    stdout.tick(now + Duration::from_millis(999));
    assert_eq!(sink.text(&echo), "");
    stdout.tick(now + Duration::from_secs(1));
    assert_eq!(stdout.due(), None);
    stdout.push(b"thanks\nbye\n", now + Duration::from_secs(2));
    assert_eq!(
        sink.text(&echo),
        "[ask stdout] Name? \n[ask stdout+] thanks\n[ask stdout] bye\n"
    );
}

#[test]
fn no_output_is_shown_at_rate_0_but_what_happens_is() {
    let (sink, now) = (Sink::default(), Instant::now());
    let echo = Echo::to(sink.clone(), 0, now).unwrap();
    let [mut stdout, _] = echo.streams("quiet");
    stdout.push(b"line\npart", now);
    assert_eq!(stdout.due(), None);
    stdout.flush(now);
    echo.say("quiet", "exited with 0");
    assert_eq!(sink.text(&echo), "[quiet] exited with 0\n");
}

#[test]
fn a_flood_is_told_of_once_a_second_and_leaves_room_for_others() {
    let (sink, begin) = (Sink::default(), Instant::now());
    let echo = Echo::to(sink.clone(), 10_000, begin).unwrap();
    let [mut flood, _] = echo.streams("flood");
    let [_, mut quiet] = echo.streams("quiet");
    let (mut pushed, mut said) = (0, 0);
    for tenth in 0..100 {
        let now = begin + Duration::from_millis(100 * tenth);
        let burst = "all work and no play\n".repeat(1000);
        flood.push(burst.as_bytes(), now);
        pushed += burst.len() as u64;
        quiet.push(format!("still here {tenth}\n").as_bytes(), now);
        echo.say("flood", "looked at");
        said += 1;
        sink.text(&echo); // what is slow to be written is not the question here
    }
    flood.flush(begin + Duration::from_secs(10));
    quiet.flush(begin + Duration::from_secs(10));
    let log = sink.text(&echo);
    let shown = lines_of(&log, "flood", "stdout").len() as u64 * 21;
    assert_eq!(shown + told(&log, "flood", "stdout"), pushed);
    assert_eq!(echo.counts().left_out, pushed - shown);
    let notices = log.matches("left out here").count();
    assert!((9..=11).contains(&notices), "{notices}");
    let heard = lines_of(&log, "quiet", "stderr");
    assert_eq!(
        heard,
        (0..100)
            .map(|tenth| format!("still here {tenth}"))
            .collect::<Vec<_>>()
    );
    assert_eq!(log.matches("[flood] looked at\n").count(), said);
    let output: usize = log
        .lines()
        .filter(|line| line.contains(" std"))
        .map(|line| line.len() + 1)
        .sum();
    assert!(
        output <= 10 * 10_000 + 4 * 10_000 + notices * 60,
        "{output}"
    );
}

#[test]
fn a_blocked_standard_output_holds_up_nobody() {
    let (sink, now) = (Sink::blocked(), Instant::now());
    let echo = generous(&sink);
    let [mut flood, _] = echo.streams("flood");
    let [mut other, _] = echo.streams("other");
    echo.say("flood", "started");
    sink.wait_until_reached();
    let line = format!("{}\n", "x".repeat(99));
    let mut pushed = 0;
    for _ in 0..100 {
        flood.push(line.repeat(100).as_bytes(), now);
        pushed += 10_000;
    }
    other.push(b"not silenced\n", now);
    for number in 0..100 {
        echo.say("flood", &format!("event {number}"));
    }
    assert!(!echo.flush(Duration::from_millis(1)), "it is blocked");
    sink.unblock();
    sink.text(&echo);
    flood.flush(now);
    let log = sink.text(&echo);
    let shown = lines_of(&log, "flood", "stdout").len() as u64 * 100;
    assert!(shown > 0 && shown < pushed);
    assert_eq!(shown + told(&log, "flood", "stdout"), pushed);
    assert_eq!(lines_of(&log, "other", "stdout"), ["not silenced"]);
    assert_eq!(log.matches("[flood] event ").count(), 100);
    assert!(log.len() < 300 * 1024, "the queue is bounded");
}

#[test]
fn a_full_disk_loses_lines_and_the_next_one_is_whole() {
    let (sink, now) = (Sink::default(), Instant::now());
    let echo = generous(&sink);
    let [mut stdout, _] = echo.streams("task");
    sink.set_room(Some(20));
    stdout.push(b"a line of some length\n", now);
    assert_eq!(sink.text(&echo), "[task stdout] a line");
    stdout.push(b"lost\n", now);
    sink.text(&echo);
    sink.set_room(None);
    stdout.push(b"found\n", now);
    assert_eq!(
        sink.text(&echo),
        "[task stdout] a line\n[task stdout] found\n"
    );
    let counts = echo.counts();
    assert_eq!(counts.lost, (36 - 20) + 19);
    assert_eq!(counts.written, 20 + 20);
}

#[test]
fn statuses_are_bounded_too() {
    let sink = Sink::default();
    let echo = generous(&sink);
    echo.say("x", &"é".repeat(5000));
    for _ in 0..10_000 {
        echo.say("churn", &"again and ".repeat(50));
        if echo.counts().statuses_left_out > 0 {
            break;
        }
    }
    let log = sink.text(&echo);
    assert!(echo.counts().statuses_left_out > 0);
    assert!(log.lines().all(|line| line.len() <= 1100));
}

fn step() -> impl Strategy<Value = (usize, bool, Vec<u8>, u64)> {
    let special = prop_oneof![
        Just(b"\n".to_vec()),
        Just(b"\n[a] exited with 0\n".to_vec()),
        Just(b"\r[b stdout] forged\r\n".to_vec()),
        Just("\u{2028}[b stdout] forged\u{85}\n".as_bytes().to_vec()),
        prop::collection::vec(any::<u8>(), 0..400),
        (1_usize..30_000).prop_map(|length| vec![b'z'; length]),
    ];
    (0_usize..3, any::<bool>(), special, 0_u64..400_000)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Every line begins with the name of the task and the stream it is from, whatever they print; no
    /// more is shown than the rate allows; what is not shown is counted.
    #[test]
    fn nothing_is_forged_lost_or_too_much(
        steps in prop::collection::vec(step(), 1..60),
        rate in 1_u32..50_000,
    ) {
        let (sink, begin) = (Sink::default(), Instant::now());
        let echo = Echo::to(sink.clone(), rate, begin).unwrap();
        let mut streams: Vec<[EchoStream; 2]> = ["a", "b", "c"].map(|name| echo.streams(name)).into();
        let mut now = begin;
        let mut pushed = 0;
        for (task, stderr, bytes, micros) in steps {
            now += Duration::from_micros(micros);
            streams[task][usize::from(stderr)].push(&bytes, now);
            pushed += bytes.len() as u64;
        }
        streams.iter_mut().flatten().for_each(|stream| stream.flush(now));
        let log = sink.text(&echo);
        let counts = echo.counts();
        prop_assert_eq!(counts.shown + counts.left_out, pushed);
        let mut told_of = 0;
        for name in ["a", "b", "c"] {
            told_of += told(&log, name, "stdout") + told(&log, name, "stderr");
        }
        prop_assert_eq!(told_of, counts.left_out);
        let (mut output, mut forged) = (0, false);
        for line in log.split_terminator('\n') {
            let (prefix, text) = line[1..].split_once("] ").unwrap();
            let (name, stream) = prefix.split_once(' ').unwrap_or((prefix, ""));
            prop_assert!(["a", "b", "c"].contains(&name), "{}", line);
            prop_assert!(["", "stdout", "stdout+", "stderr", "stderr+"].contains(&stream), "{}", line);
            prop_assert!(!text.chars().any(|one| one.is_control() && one != '\t'));
            forged |= stream.is_empty() && !text.ends_with("left out here");
            if !stream.is_empty() {
                output += line.len() as u128 + 1;
            }
        }
        prop_assert!(!forged, "a task said what only the executor says");
        let most = u128::from(rate) * (now - begin).as_nanos() / 1_000_000_000 + 4 * u128::from(rate);
        prop_assert!(output <= most, "{output} of {most}");
        prop_assert!(log.is_empty() || log.ends_with('\n'));
        prop_assert!(echo.flush(PATIENCE));
    }
}
