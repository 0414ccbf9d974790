//! What is kept of the output, and for how long.

use std::sync::Arc;
use std::time::Duration;

use proptest::prelude::*;
use task_executor::output::{From, Outputs, Stream, TaskOutput};

use super::support::PATIENCE;

const KIB: usize = 1024;

fn read(task: &TaskOutput, from: From) -> (u64, String, u64, bool) {
    let chunk = task.read(Stream::Stdout, from, usize::MAX);
    let text = String::from_utf8(chunk.bytes.to_vec()).unwrap();
    (chunk.offset, text, chunk.dropped_before, chunk.end)
}

fn held(task: &TaskOutput) -> usize {
    Stream::ALL
        .map(|stream| task.read(stream, From::Offset(0), usize::MAX).bytes.len())
        .iter()
        .sum()
}

#[test]
fn a_stream_is_read_from_anywhere() {
    let outputs = Outputs::new(4096, 1 << 20);
    let task = outputs.open();
    assert_eq!(
        read(&task, From::TailLines(5)),
        (0, String::new(), 0, false)
    );
    task.append(Stream::Stdout, b"one\ntwo\nthree");
    task.append(Stream::Stderr, b"elsewhere");
    assert_eq!(
        read(&task, From::Offset(4)),
        (4, "two\nthree".into(), 0, false)
    );
    assert_eq!(read(&task, From::Offset(99)), (13, String::new(), 0, false));
    assert_eq!(
        read(&task, From::TailBytes(3)),
        (10, "ree".into(), 0, false)
    );
    assert_eq!(read(&task, From::TailBytes(99)).0, 0);
    assert_eq!(
        read(&task, From::TailLines(2)),
        (4, "two\nthree".into(), 0, false)
    );
    assert_eq!(
        read(&task, From::TailLines(0)),
        (13, String::new(), 0, false)
    );
    let part = task.read(Stream::Stdout, From::Offset(0), 3);
    assert_eq!(
        (&part.bytes[..], part.next_offset(), part.end),
        (&b"one"[..], 3, false)
    );

    task.close(Stream::Stdout);
    assert!(
        !task.read(Stream::Stdout, From::Offset(0), 3).end,
        "more follows"
    );
    assert!(read(&task, From::Offset(0)).3);
    assert!(!task.read(Stream::Stderr, From::Offset(0), 99).end);
}

#[test]
fn what_fell_out_is_told() {
    let outputs = Outputs::new(4096, 1 << 20);
    let task = outputs.open();
    for number in 0..1000 {
        task.append(Stream::Stdout, format!("line {number:04}\n").as_bytes());
    }
    let (start, text, dropped, _) = read(&task, From::Offset(1000));
    assert_eq!(
        (start, text.len(), dropped),
        (10_000 - 4096, 4096, 9000 - 4096)
    );
    assert_eq!(read(&task, From::TailBytes(5000)).2, 5000 - 4096);
    assert_eq!(read(&task, From::TailLines(2)).1, "line 0998\nline 0999\n");
    assert_eq!(read(&task, From::TailLines(2)).2, 0);
    assert_eq!(read(&task, From::TailLines(999)).2, 10_000 - 4096);
    assert_eq!(task.written(Stream::Stdout), (10_000, 10_000 - 4096));
    let counts = outputs.counts();
    assert_eq!(
        (counts.written, counts.dropped, counts.memory),
        (10_000, 10_000 - 4096, 4096)
    );
    drop(task);
    assert_eq!(outputs.counts().memory, 0);
}

#[test]
fn ended_tasks_give_way_first_and_the_largest_running_one_then() {
    let outputs = Outputs::new(64 * 1024, 256 * 1024);
    let filled = |kib: usize| {
        let task = outputs.open();
        task.append(Stream::Stdout, &vec![b'x'; kib * KIB]);
        task
    };
    let (first, second, running, large) = (filled(64), filled(64), filled(32), filled(64));
    second.end();
    first.end();
    let more = filled(64);
    assert_eq!([&first, &second].map(|task| held(task)), [64 * KIB, 0]);
    let most = filled(32);
    assert_eq!(held(&first), 64 * KIB, "there was room");
    let last = filled(64);
    assert_eq!(held(&first), 0);
    assert_eq!(
        [&running, &large, &more, &most, &last].map(|task| held(task)),
        [32 * KIB, 64 * KIB, 64 * KIB, 32 * KIB, 64 * KIB]
    );
    // Nobody that ended is left. One of the largest loses its older half.
    let newcomer = filled(16);
    let larger = [&large, &more, &last].map(|task| held(task));
    assert_eq!(larger.iter().sum::<usize>(), (64 + 64 + 32) * KIB);
    assert_eq!(
        [&running, &most, &newcomer].map(|task| held(task)),
        [32 * KIB, 32 * KIB, 16 * KIB]
    );
    assert!(outputs.counts().memory <= 256 * 1024);
}

#[test]
fn who_ended_while_it_prints_on_keeps_its_last() {
    let outputs = Outputs::new(64 * 1024, 32 * 1024);
    let task = outputs.open();
    task.end();
    task.append(Stream::Stdout, &vec![b'x'; 100 * KIB]);
    task.append(Stream::Stdout, b"last");
    assert_eq!(read(&task, From::TailBytes(4)).1, "last");
    assert!(outputs.counts().memory <= 32 * 1024);
}

#[tokio::test]
async fn waiting_ends_with_more_or_with_the_stream() {
    let outputs = Outputs::new(4096, 1 << 20);
    let task = outputs.open();
    let follow = |beyond| {
        let task = Arc::clone(&task);
        let wait = async move { task.changed(Stream::Stdout, beyond).await };
        tokio::spawn(tokio::time::timeout(PATIENCE, wait))
    };
    let (first, second, third) = (follow(0), follow(1), follow(9));
    tokio::task::yield_now().await;
    task.append(Stream::Stdout, b"x");
    first.await.unwrap().expect("one byte is there");
    assert!(!second.is_finished() && !third.is_finished());
    task.append(Stream::Stdout, b"y");
    second.await.unwrap().expect("two bytes are there");
    task.close(Stream::Stdout);
    third.await.unwrap().expect("no more comes");
    tokio::time::timeout(Duration::ZERO, task.closed())
        .await
        .expect_err("standard error is open");
    task.close(Stream::Stderr);
    task.closed().await;
}

#[derive(Clone, Debug)]
enum Step {
    Open,
    Append(usize, bool, usize),
    End(usize),
    Forget(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let task = 0_usize..8;
    prop_oneof![
        3 => Just(Step::Open),
        20 => (task.clone(), any::<bool>(), 0_usize..9000)
            .prop_map(|(task, stderr, length)| Step::Append(task, stderr, length)),
        3 => task.clone().prop_map(Step::End),
        1 => task.prop_map(Step::Forget),
    ]
}

struct Model {
    output: Arc<TaskOutput>,
    all: [Vec<u8>; 2],
    ended: Option<usize>,
    dropped: u64,
}

impl Model {
    fn holds_any(&self) -> bool {
        held(&self.output) > 0
    }

    fn dropped_now(&self) -> u64 {
        Stream::ALL
            .map(|stream| self.output.written(stream).1)
            .iter()
            .sum()
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    #[test]
    fn every_byte_is_held_or_counted_and_the_order_is_kept(
        steps in prop::collection::vec(step(), 1..80),
        (stream_limit, total) in (4096_u32..20_000, 0_u64..60_000),
    ) {
        let outputs = Outputs::new(stream_limit, total);
        let mut tasks: Vec<Model> = Vec::new();
        let (mut written, mut forgotten, mut ends) = (0, 0, 0);
        for (number, step) in steps.into_iter().enumerate() {
            let count = tasks.len().max(1);
            let mut appended = None;
            match step {
                Step::Open => tasks.push(Model {
                    output: outputs.open(),
                    all: <[Vec<u8>; 2]>::default(),
                    ended: None,
                    dropped: 0,
                }),
                Step::Append(task, stderr, length) => {
                    if let Some(task) = tasks.get_mut(task % count) {
                        let bytes: Vec<u8> = (0..length).map(|at| u8::try_from((at + number) % 251).unwrap()).collect();
                        task.output.append(Stream::ALL[usize::from(stderr)], &bytes);
                        task.all[usize::from(stderr)].extend(&bytes);
                        written += length as u64;
                    }
                    appended = Some(task % count);
                }
                Step::End(task) => {
                    if let Some(task) = tasks.get_mut(task % count) {
                        task.output.end();
                        ends += 1;
                        task.ended.get_or_insert(ends);
                    }
                }
                Step::Forget(task) => {
                    if task % count < tasks.len() {
                        forgotten += tasks.remove(task % count).dropped;
                    }
                }
            }
            for task in &tasks {
                for stream in Stream::ALL {
                    let all = &task.all[usize::from(stream == Stream::Stderr)];
                    let chunk = task.output.read(stream, From::Offset(0), usize::MAX);
                    let start = usize::try_from(chunk.offset).unwrap();
                    prop_assert_eq!(&chunk.bytes[..], &all[start..]);
                    prop_assert_eq!(chunk.dropped_before, chunk.offset);
                    prop_assert_eq!(task.output.written(stream), (all.len() as u64, chunk.offset));
                    prop_assert!(chunk.bytes.len() <= stream_limit as usize);
                }
            }
            // Who lost anything, and who would have been first?
            for (index, task) in tasks.iter().enumerate() {
                let lost = task.dropped_now() > task.dropped;
                for (other_index, other) in tasks.iter().enumerate() {
                    let earlier = other.ended.is_some_and(|end| task.ended.is_none_or(|own| end < own));
                    if lost && earlier && ![index, other_index].iter().any(|one| Some(*one) == appended) {
                        prop_assert!(!other.holds_any());
                    }
                }
            }
            for task in &mut tasks {
                task.dropped = task.dropped_now();
            }
            let counts = outputs.counts();
            prop_assert!(counts.memory <= total);
            prop_assert_eq!(counts.written, written);
            let dropped: u64 = tasks.iter().map(|task| task.dropped).sum();
            prop_assert_eq!(counts.dropped, dropped + forgotten);
        }
    }
}
