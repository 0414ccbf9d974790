//! The conversation with one agent: frames and descriptors over a Unix stream socket.
//!
//! The agent is not trusted: a frame that is too long, makes no sense or lacks its descriptors ends the
//! conversation, and nothing else.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdStream;

use nix::cmsg_space;
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, MsgFlags, recvmsg, sendmsg};
use tokio::io::Interest;
use tokio::net::UnixStream;
use tokio::sync::mpsc;

use crate::agent::protocol::{MAX_FRAME, Order, Report};
use crate::sys::fd;

/// Bytes read at once.
const CHUNK: usize = 64 * 1024;
/// Bytes that wait to be written before further orders are left in their queue.
const MAX_PENDING: usize = 1024 * 1024;
/// Descriptors that came and whose frame has not.
const MAX_DESCRIPTORS: usize = 16;
/// Orders that wait for an agent that does not read: more than all tasks there can be need.
const MAX_ORDERS: usize = 16 * 1024;
/// Frames that are handled before others get their turn: one thread serves the API too.
const FRAMES_PER_TURN: usize = 64;

/// The reading ends of a task's standard output and standard error.
#[derive(Debug)]
pub struct Pipes {
    /// Standard output.
    pub stdout: OwnedFd,
    /// Standard error.
    pub stderr: OwnedFd,
}

/// Why a conversation ended.
#[derive(Debug, thiserror::Error)]
pub enum Closed {
    /// The agent has ended, or dropped the connection.
    #[error("the agent closed the connection")]
    ByAgent,
    /// Nobody gives orders any more.
    #[error("the executor ends")]
    ByExecutor,
    /// The agent said what no agent says.
    #[error("the agent broke the protocol: {0}")]
    Protocol(String),
    /// The socket failed.
    #[error("the connection to the agent failed")]
    Io(#[from] io::Error),
}

/// Opens a connection through the control socket of an agent.
///
/// # Errors
///
/// The agent has ended, or descriptors are used up.
pub fn connect(control: BorrowedFd<'_>) -> io::Result<UnixStream> {
    let (near, far) = StdStream::pair()?;
    let rights = [far.as_raw_fd()];
    let message = [ControlMessage::ScmRights(&rights)];
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    sendmsg::<()>(
        control.as_raw_fd(),
        &[IoSlice::new(b"c")],
        &message,
        flags,
        None,
    )?;
    near.set_nonblocking(true)?;
    UnixStream::from_std(near)
}

/// Talks until one side ends it. Each report is handed to `on_report`, in order, with its pipes; an
/// error of that says what no agent would have said, and ends the conversation.
pub async fn converse(
    stream: &UnixStream,
    orders: &mut mpsc::UnboundedReceiver<Order>,
    mut on_report: impl FnMut(Report, Option<Pipes>) -> Result<(), String>,
) -> Closed {
    let mut incoming = Incoming::default();
    let mut outgoing = VecDeque::new();
    loop {
        if orders.len() > MAX_ORDERS {
            return Closed::Protocol("it does not read its orders".to_owned());
        }
        let room = outgoing.len() < MAX_PENDING;
        let interest = if outgoing.is_empty() {
            Interest::READABLE
        } else {
            Interest::READABLE | Interest::WRITABLE
        };
        tokio::select! {
            biased;
            order = orders.recv(), if room => match order {
                Some(order) => {
                    encode(&order, &mut outgoing);
                    // Most often the socket has room, and the order goes out at once.
                    if let Err(error) = write(stream, &mut outgoing) {
                        return Closed::Io(error);
                    }
                }
                None => return Closed::ByExecutor,
            },
            ready = stream.ready(interest) => {
                let ready = match ready {
                    Ok(ready) => ready,
                    Err(error) => return Closed::Io(error),
                };
                if ready.is_writable() && let Err(error) = write(stream, &mut outgoing) {
                    return Closed::Io(error);
                }
                if ready.is_readable() {
                    match incoming.receive(stream) {
                        Ok(true) => {}
                        Ok(false) => return Closed::ByAgent,
                        Err(Closed::Io(error)) if error.kind() == io::ErrorKind::ConnectionReset => {
                            return Closed::ByAgent;
                        }
                        Err(closed) => return closed,
                    }
                    let mut frames = 0;
                    loop {
                        let heard = match incoming.next() {
                            Ok(Some((report, pipes))) => on_report(report, pipes),
                            Ok(None) => break,
                            Err(text) => Err(text),
                        };
                        if let Err(text) = heard {
                            return Closed::Protocol(text);
                        }
                        frames += 1;
                        if frames % FRAMES_PER_TURN == 0 {
                            tokio::task::yield_now().await;
                        }
                    }
                }
            }
        }
    }
}

fn encode(order: &Order, outgoing: &mut VecDeque<u8>) {
    // Plain data without maps: postcard has nothing to refuse.
    let Ok(body) = postcard::to_stdvec(order) else {
        return;
    };
    let Ok(length) = u32::try_from(body.len()) else {
        return;
    };
    outgoing.extend(length.to_le_bytes());
    outgoing.extend(body);
}

fn write(stream: &UnixStream, outgoing: &mut VecDeque<u8>) -> io::Result<()> {
    while !outgoing.is_empty() {
        let (front, _) = outgoing.as_slices();
        match stream.try_write(front) {
            Ok(written) => drop(outgoing.drain(..written)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
            Err(error) => return Err(error),
        }
    }
    if outgoing.is_empty() {
        outgoing.shrink_to(CHUNK);
    }
    Ok(())
}

/// What came in and is not yet understood.
#[derive(Debug, Default)]
struct Incoming {
    bytes: Vec<u8>,
    /// Of these, so many were understood.
    done: usize,
    descriptors: VecDeque<OwnedFd>,
}

impl Incoming {
    /// Reads once; `false` at the end.
    fn receive(&mut self, stream: &UnixStream) -> Result<bool, Closed> {
        self.bytes.drain(..self.done);
        self.done = 0;
        let start = self.bytes.len();
        self.bytes.resize(start + CHUNK, 0);
        let buffer = self.bytes.get_mut(start..).unwrap_or_default();
        let result = stream.try_io(Interest::READABLE, || {
            // The descriptors of one message are never merged with those of the next.
            let mut space = cmsg_space!([std::os::fd::RawFd; 4]);
            let mut parts = [IoSliceMut::new(buffer)];
            let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
            let raw = stream.as_fd().as_raw_fd();
            let message = recvmsg::<()>(raw, &mut parts, Some(&mut space), flags)?;
            let truncated = message.flags.contains(MsgFlags::MSG_CTRUNC);
            let descriptors = fd::received(&message)?;
            Ok((message.bytes, descriptors, truncated))
        });
        match result {
            Ok((count, descriptors, truncated)) => {
                self.bytes.truncate(start + count);
                self.descriptors.extend(descriptors);
                if truncated || self.descriptors.len() > MAX_DESCRIPTORS {
                    return Err(Closed::Protocol("too many descriptors".to_owned()));
                }
                Ok(count > 0)
            }
            Err(error) => {
                self.bytes.truncate(start);
                match error.kind() {
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted => Ok(true),
                    _ if error.raw_os_error() == Some(Errno::ENOBUFS as i32) => Ok(true),
                    _ => Err(Closed::Io(error)),
                }
            }
        }
    }

    /// The next whole frame.
    fn next(&mut self) -> Result<Option<(Report, Option<Pipes>)>, String> {
        let left = self.bytes.get(self.done..).unwrap_or_default();
        let Some((head, rest)) = left.split_first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*head) as usize;
        if length > MAX_FRAME {
            return Err(format!(
                "a frame of {length} bytes, the most is {MAX_FRAME}"
            ));
        }
        let Some(body) = rest.get(..length) else {
            return Ok(None);
        };
        let report: Report = postcard::from_bytes(body)
            .map_err(|error| format!("a frame makes no sense: {error}"))?;
        self.done += 4 + length;
        if self.done == self.bytes.len() {
            self.bytes.clear();
            self.done = 0;
            self.bytes.shrink_to(CHUNK);
        }
        let pipes = match &report {
            Report::Task(task) if task.output => {
                match (self.descriptors.pop_front(), self.descriptors.pop_front()) {
                    (Some(stdout), Some(stderr)) => Some(Pipes { stdout, stderr }),
                    _ => return Err("output was promised and did not come".to_owned()),
                }
            }
            _ => None,
        };
        Ok(Some((report, pipes)))
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;
    use crate::agent::protocol::{StopCause, TaskKey, TaskReport, TaskState};

    fn frame(report: &Report) -> Vec<u8> {
        let body = postcard::to_stdvec(report).unwrap();
        let mut frame = u32::try_from(body.len()).unwrap().to_le_bytes().to_vec();
        frame.extend(body);
        frame
    }

    fn with_output() -> Report {
        Report::Task(Box::new(TaskReport {
            key: TaskKey(7),
            note: None,
            state: TaskState::Starting,
            stop: Some(StopCause::Timeout),
            gone: false,
            output: true,
        }))
    }

    #[test]
    fn frames_in_pieces_are_put_together() {
        let mut bytes = frame(&Report::Hello { version: 1 });
        bytes.extend(frame(&Report::SnapshotEnd));
        let mut incoming = Incoming::default();
        let mut reports = Vec::new();
        for byte in bytes {
            incoming.bytes.push(byte);
            while let Some((report, _)) = incoming.next().unwrap() {
                reports.push(report);
            }
        }
        assert_eq!(reports, [Report::Hello { version: 1 }, Report::SnapshotEnd]);
    }

    #[test]
    fn promised_descriptors_must_come() {
        let mut incoming = Incoming {
            bytes: frame(&with_output()),
            ..Incoming::default()
        };
        assert!(incoming.next().is_err());
    }

    #[test]
    fn a_frame_that_is_too_long_is_refused_before_it_has_come() {
        let mut incoming = Incoming {
            bytes: u32::MAX.to_le_bytes().to_vec(),
            ..Incoming::default()
        };
        assert!(incoming.next().is_err());
    }

    #[tokio::test]
    async fn descriptors_arrive_with_their_frame() {
        let (near, far) = StdStream::pair().unwrap();
        near.set_nonblocking(true).unwrap();
        let stream = UnixStream::from_std(near).unwrap();
        let (reader, mut writer) = io::pipe().unwrap();
        let (other, _) = io::pipe().unwrap();
        let rights = [reader.as_raw_fd(), other.as_raw_fd()];
        let message = [ControlMessage::ScmRights(&rights)];
        let bytes = frame(&with_output());
        let parts = [IoSlice::new(&bytes)];
        sendmsg::<()>(far.as_raw_fd(), &parts, &message, MsgFlags::empty(), None).unwrap();
        drop((reader, far));
        writer.write_all(b"x").unwrap();
        let (_orders, mut receiver) = mpsc::unbounded_channel();
        let mut got = Vec::new();
        let closed = converse(&stream, &mut receiver, |report, pipes| {
            got.push((report, pipes));
            Ok(())
        });
        assert!(matches!(closed.await, Closed::ByAgent));
        let [(report, Some(pipes))] = &got[..] else {
            panic!("{got:?}")
        };
        assert_eq!(*report, with_output());
        let mut byte = [0];
        assert_eq!(nix::unistd::read(&pipes.stdout, &mut byte), Ok(1));
        assert_eq!(byte, *b"x");
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let mut incoming = Incoming { bytes, ..Incoming::default() };
            while let Ok(Some(_)) = incoming.next() {}
        }
    }
}
