//! Reading real pipes, from writers that mean well and others.

use std::fs::File;
use std::io::{PipeReader, PipeWriter, Read as _, Write as _, pipe};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::stat::Mode;
use task_executor::output::{AttachError, Attached, From, Intake, Outputs, Stream, TaskOutput};
use tokio::time::timeout;

use super::support::{PATIENCE, Sink, generous};

struct Task {
    output: Arc<TaskOutput>,
    stdout: PipeWriter,
    stderr: PipeWriter,
    /// Copies of what was sent, as the agent keeps them.
    copies: [PipeReader; 2],
    attached: Attached,
}

fn start(intake: &Intake, outputs: &Outputs, name: &str) -> Task {
    let output = outputs.open();
    let (stdout_reader, stdout) = pipe().unwrap();
    let (stderr_reader, stderr) = pipe().unwrap();
    let copies = [&stdout_reader, &stderr_reader].map(|reader| reader.try_clone().unwrap());
    let attached = intake
        .attach(name, &output, stdout_reader.into(), stderr_reader.into())
        .unwrap();
    Task {
        output,
        stdout,
        stderr,
        copies,
        attached,
    }
}

fn everything(output: &TaskOutput, stream: Stream) -> Vec<u8> {
    output
        .read(stream, From::Offset(0), usize::MAX)
        .bytes
        .to_vec()
}

async fn closed(output: &TaskOutput) {
    timeout(PATIENCE, output.closed())
        .await
        .expect("the streams end");
}

/// Resident memory of this process, in bytes.
fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status
        .lines()
        .find_map(|line| line.strip_prefix("VmRSS:"))
        .unwrap();
    line.trim().trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
}

#[tokio::test]
async fn both_streams_are_read_to_their_ends() {
    let (sink, outputs) = (Sink::default(), Outputs::new(1 << 20, 1 << 30));
    let echo = generous(&sink);
    let Task {
        output,
        mut stdout,
        mut stderr,
        attached,
        ..
    } = start(&Intake::new(echo.clone()), &outputs, "task");
    stdout.write_all(b"to out\n").unwrap();
    stderr.write_all(b"to err, no end of line").unwrap();
    timeout(PATIENCE, output.changed(Stream::Stdout, 0))
        .await
        .unwrap();
    timeout(PATIENCE, output.changed(Stream::Stderr, 0))
        .await
        .unwrap();
    assert!(!output.read(Stream::Stdout, From::Offset(0), 99).end);
    drop((stdout, stderr));
    closed(&output).await;
    assert_eq!(everything(&output, Stream::Stdout), b"to out\n");
    assert_eq!(
        everything(&output, Stream::Stderr),
        b"to err, no end of line"
    );
    assert!(output.read(Stream::Stdout, From::Offset(0), 99).end);
    let mut log: Vec<String> = sink.text(&echo).lines().map(ToOwned::to_owned).collect();
    log.sort();
    assert_eq!(
        log,
        [
            "[task stderr] to err, no end of line",
            "[task stdout] to out"
        ]
    );
    drop(attached);
}

/// What a task wrote before its end is complete at once, while another process keeps the pipe.
#[tokio::test]
async fn draining_takes_what_is_there_and_does_not_wait() {
    let (sink, outputs) = (Sink::default(), Outputs::new(1 << 20, 1 << 30));
    let echo = generous(&sink);
    let mut task = start(&Intake::new(echo.clone()), &outputs, "task");
    task.attached.drain_now();
    assert_eq!(task.output.written(Stream::Stdout).0, 0);
    let full = vec![b'x'; 64 * 1024];
    task.stdout.write_all(&full).unwrap();
    task.stderr.write_all(b"last words").unwrap();
    task.attached.drain_now();
    assert_eq!(everything(&task.output, Stream::Stdout), full);
    assert_eq!(everything(&task.output, Stream::Stderr), b"last words");
    assert!(sink.text(&echo).ends_with("[task stderr] last words\n"));

    task.stdout.write_all(b"more").unwrap();
    timeout(
        PATIENCE,
        task.output.changed(Stream::Stdout, full.len() as u64),
    )
    .await
    .expect("what is left behind is read too");
    task.stdout.write_all(b" and the end").unwrap();
    task.attached.stop();
    closed(&task.output).await;
    assert!(everything(&task.output, Stream::Stdout).ends_with(b"more and the end"));
}

#[tokio::test]
async fn what_was_attached_can_be_attached_again() {
    let (sink, outputs) = (Sink::default(), Outputs::new(1 << 20, 1 << 30));
    let intake = Intake::new(generous(&sink));
    let mut task = start(&intake, &outputs, "task");
    task.stdout.write_all(b"one ").unwrap();
    timeout(PATIENCE, task.output.changed(Stream::Stdout, 3))
        .await
        .unwrap();
    drop(task.attached);
    task.stdout.write_all(b"two ").unwrap();
    let [stdout, stderr] = task.copies;
    let attached = intake
        .attach("task", &task.output, stdout.into(), stderr.into())
        .unwrap();
    task.stdout.write_all(b"three").unwrap();
    drop((task.stdout, task.stderr));
    closed(&task.output).await;
    assert_eq!(everything(&task.output, Stream::Stdout), b"one two three");
    drop(attached);
}

/// Who keeps a copy of a pipe can make it blocking and take bytes away; nobody waits for them.
#[tokio::test]
async fn a_pipe_that_others_read_holds_up_nobody() {
    let (sink, outputs) = (Sink::default(), Outputs::new(1 << 20, 1 << 30));
    let mut task = start(&Intake::new(generous(&sink)), &outputs, "task");
    for _ in 0..200 {
        fcntl(&task.copies[0], FcntlArg::F_SETFL(OFlag::empty())).unwrap();
        task.stdout.write_all(b"stolen").unwrap();
        let mut stolen = [0; 6];
        task.copies[0].read_exact(&mut stolen).unwrap();
        tokio::task::yield_now().await; // the reader is woken for what is no longer there
        task.attached.drain_now();
    }
    assert_eq!(task.output.written(Stream::Stdout).0, 0);
    task.stdout.write_all(b"kept").unwrap();
    timeout(PATIENCE, task.output.changed(Stream::Stdout, 3))
        .await
        .unwrap();
    assert_eq!(everything(&task.output, Stream::Stdout), b"kept");
}

#[tokio::test]
async fn what_is_no_pipe_is_refused() {
    let (sink, outputs) = (Sink::default(), Outputs::new(1 << 20, 1 << 30));
    let intake = Intake::new(generous(&sink));
    let output = outputs.open();
    let directory = tempfile::tempdir().unwrap();
    let fifo = directory.path().join("fifo");
    nix::unistd::mkfifo(&fifo, Mode::S_IRWXU).unwrap();
    let both_ways = File::options().read(true).write(true).open(&fifo).unwrap();
    let path_only = nix::fcntl::open(&fifo, OFlag::O_PATH, Mode::empty()).unwrap();
    let cases: [(OwnedFd, &str); 6] = [
        (File::open("/dev/zero").unwrap().into(), "is not a pipe"),
        (
            File::open("/proc/self/status").unwrap().into(),
            "is not a pipe",
        ),
        (UnixStream::pair().unwrap().0.into(), "is not a pipe"),
        (path_only, "is not a pipe"),
        (pipe().unwrap().1.into(), "is not the reading end of a pipe"),
        (both_ways.into(), "is not the reading end of a pipe"),
    ];
    for (descriptor, reason) in cases {
        let (good, _writer) = pipe().unwrap();
        let refused: AttachError = intake
            .attach("task", &output, good.into(), descriptor)
            .expect_err("it is no reading end of a pipe");
        assert_eq!(
            refused.to_string(),
            format!("the descriptor sent for stderr {reason}")
        );
    }
}

/// `TEST_FLOOD_MIB` makes the flood longer.
#[tokio::test]
async fn a_flood_needs_little_memory_and_leaves_others_alone() {
    let mib = std::env::var("TEST_FLOOD_MIB").map_or(64, |text| text.parse::<u64>().unwrap());
    let (sink, outputs) = (Sink::default(), Outputs::new(1 << 20, 96 << 20));
    let echo = task_executor::output::Echo::to(sink.clone(), 64 * 1024, std::time::Instant::now());
    let intake = Intake::new(echo.unwrap());
    let flood = start(&intake, &outputs, "flood");
    let small = start(&intake, &outputs, "small");
    let before = resident();
    let (mut into_flood, mut into_small) = (flood.stdout, small.stdout);
    drop((flood.stderr, small.stderr));
    let writers = [
        thread::spawn(move || {
            let block = "a line of a flood, 32 bytes long\n".repeat(32 * 1024);
            let block = &block.as_bytes()[..1 << 20];
            for _ in 0..mib {
                into_flood.write_all(block).unwrap();
            }
        }),
        thread::spawn(move || {
            for number in 0..1000 {
                into_small
                    .write_all(format!("{number}\n").as_bytes())
                    .unwrap();
            }
        }),
    ];
    let mut most = before;
    while timeout(std::time::Duration::from_millis(20), flood.output.closed())
        .await
        .is_err()
    {
        most = most.max(resident());
    }
    closed(&small.output).await;
    for writer in writers {
        writer.join().unwrap();
    }
    assert!(most - before < 24 << 20, "{} bytes more", most - before);
    assert_eq!(
        flood.output.written(Stream::Stdout),
        (mib << 20, (mib - 1) << 20)
    );
    let numbers = (0..1000)
        .map(|number| number.to_string() + "\n")
        .collect::<String>();
    assert_eq!(
        everything(&small.output, Stream::Stdout),
        numbers.as_bytes()
    );
    assert_eq!(outputs.counts().written, (mib << 20) + numbers.len() as u64);
}
