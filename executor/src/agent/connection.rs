//! The connection to the executor: frames in and out, never waiting for it.

use std::io::IoSlice;
use std::os::fd::{AsFd, AsRawFd as _, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::socket::{ControlMessage, MsgFlags, recv, send, sendmsg};
use serde::Serialize;

use super::protocol::{MAX_FRAME, Order};

/// Bytes of a frame's length.
const HEAD: usize = 4;
/// Bytes read from the socket at once.
const CHUNK: usize = 16 * 1024;
/// Chunks read in a row: tasks have a turn as well.
const CHUNKS: usize = 64;

/// Why a connection is given up. Never for anything but the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Closed;

/// What became of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offered {
    /// It is on its way, whole.
    Taken,
    /// There is no room now, and nothing of it was sent.
    Full,
    /// There is room, but too many descriptors are on their way already; nothing of it was sent.
    Congested,
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    socket: OwnedFd,
    incoming: Vec<u8>,
    /// The rest of a frame of which a part was sent, and how much of it was.
    outgoing: Vec<u8>,
    sent: usize,
}

impl AsFd for Connection {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Connection {
    /// Takes a stream socket.
    ///
    /// # Errors
    ///
    /// It cannot be made non-blocking.
    pub fn new(socket: OwnedFd) -> Result<Self, Errno> {
        let flags = OFlag::from_bits_retain(fcntl(&socket, FcntlArg::F_GETFL)?);
        fcntl(&socket, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(Self {
            socket,
            incoming: Vec::new(),
            outgoing: Vec::new(),
            sent: 0,
        })
    }

    /// Reads what is there.
    ///
    /// # Errors
    ///
    /// The other end is closed.
    pub fn receive(&mut self) -> Result<(), Closed> {
        let mut chunk = [0; CHUNK];
        for _ in 0..CHUNKS {
            // The rest waits in the socket until this frame has been taken.
            if self.incoming.len() >= HEAD + MAX_FRAME {
                break;
            }
            match recv(self.socket.as_raw_fd(), &mut chunk, MsgFlags::MSG_DONTWAIT) {
                Ok(0) => return Err(Closed),
                Ok(length) => {
                    self.incoming
                        .extend_from_slice(chunk.get(..length).unwrap_or_default());
                }
                Err(Errno::EAGAIN) => break,
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Closed),
            }
        }
        Ok(())
    }

    /// Takes the next order out of what was read.
    ///
    /// # Errors
    ///
    /// It is none.
    pub fn next_order(&mut self) -> Result<Option<Order>, Closed> {
        let Some((head, rest)) = self.incoming.split_first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let length = usize::try_from(u32::from_le_bytes(*head)).map_err(|_| Closed)?;
        if length > MAX_FRAME {
            return Err(Closed);
        }
        let Some(frame) = rest.get(..length) else {
            return Ok(None);
        };
        let Ok((order, [])) = postcard::take_from_bytes(frame) else {
            return Err(Closed);
        };
        self.incoming.drain(..HEAD + length);
        if self.incoming.is_empty() {
            // Most frames are short; what a long one took is given back.
            self.incoming.shrink_to(CHUNK);
        }
        Ok(Some(order))
    }

    /// Nothing waits to be sent.
    pub fn is_idle(&self) -> bool {
        self.outgoing.is_empty()
    }

    /// Sends `message` as a frame whose first byte carries `fds`. Only while [`Self::is_idle`].
    ///
    /// # Errors
    ///
    /// The other end is closed.
    pub fn offer(&mut self, message: &impl Serialize, fds: &[RawFd]) -> Result<Offered, Closed> {
        let mut frame = vec![0; HEAD];
        frame = postcard::to_extend(message, frame).map_err(|_| Closed)?;
        let length = frame.len() - HEAD;
        if length > MAX_FRAME {
            return Err(Closed);
        }
        let head = u32::try_from(length).map_err(|_| Closed)?.to_le_bytes();
        if let Some(place) = frame.first_chunk_mut::<HEAD>() {
            *place = head;
        }
        let rights = [ControlMessage::ScmRights(fds)];
        let rights = if fds.is_empty() { &[][..] } else { &rights[..] };
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        let slice = [IoSlice::new(&frame)];
        match sendmsg::<()>(self.socket.as_raw_fd(), &slice, rights, flags, None) {
            Ok(sent) if sent == frame.len() => Ok(Offered::Taken),
            Ok(sent) => {
                self.outgoing = frame;
                self.sent = sent;
                Ok(Offered::Taken)
            }
            Err(Errno::EAGAIN | Errno::EINTR | Errno::ENOBUFS) => Ok(Offered::Full),
            Err(Errno::ETOOMANYREFS | Errno::ENOMEM) => Ok(Offered::Congested),
            Err(_) => Err(Closed),
        }
    }

    /// Sends on what was begun.
    ///
    /// # Errors
    ///
    /// The other end is closed.
    pub fn flush(&mut self) -> Result<(), Closed> {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        while let Some(rest) = self
            .outgoing
            .get(self.sent..)
            .filter(|rest| !rest.is_empty())
        {
            match send(self.socket.as_raw_fd(), rest, flags) {
                Ok(sent) => self.sent += sent,
                Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::ENOMEM) => return Ok(()),
                Err(Errno::EINTR) => {}
                Err(_) => return Err(Closed),
            }
        }
        self.outgoing = Vec::new();
        self.sent = 0;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::os::unix::net::UnixStream;

    use super::super::protocol::Report;
    use super::*;

    fn pair() -> (Connection, UnixStream) {
        let (near, far) = UnixStream::pair().unwrap();
        (Connection::new(near.into()).unwrap(), far)
    }

    fn frame(order: &Order) -> Vec<u8> {
        let text = postcard::to_stdvec(order).unwrap();
        [&u32::try_from(text.len()).unwrap().to_le_bytes()[..], &text].concat()
    }

    #[test]
    fn orders_arrive_whatever_the_pieces() {
        let (mut connection, mut far) = pair();
        let orders = [
            Order::Hello { version: 1 },
            Order::Probe { number: 7 },
            Order::Shutdown,
        ];
        let text: Vec<u8> = orders.iter().flat_map(frame).collect();
        let mut heard = Vec::new();
        for byte in text {
            far.write_all(&[byte]).unwrap();
            connection.receive().unwrap();
            heard.extend(connection.next_order().unwrap());
        }
        assert_eq!(heard, orders);
    }

    #[test]
    fn what_is_no_order_closes() {
        for text in [
            &[255; 4][..],
            &[1, 0, 0, 0, 200],
            &[2, 0, 0, 0, 6, 6],
            &[0; 4],
        ] {
            let (mut connection, mut far) = pair();
            far.write_all(text).unwrap();
            connection.receive().unwrap();
            assert_eq!(connection.next_order(), Err(Closed), "{text:?}");
        }
    }

    #[test]
    fn a_length_alone_takes_no_memory() {
        let (mut connection, mut far) = pair();
        far.write_all(&u32::try_from(MAX_FRAME).unwrap().to_le_bytes())
            .unwrap();
        connection.receive().unwrap();
        assert_eq!(connection.next_order(), Ok(None));
        assert!(connection.incoming.capacity() < CHUNK);
    }

    #[test]
    fn a_reader_that_does_not_read_holds_nobody_up() {
        let (mut connection, mut far) = pair();
        let long = Report::Task(Box::new(super::super::protocol::TaskReport {
            key: super::super::protocol::TaskKey(1),
            note: Some(vec![7; 100_000]),
            state: super::super::protocol::TaskState::Starting,
            stop: None,
            gone: false,
            output: false,
        }));
        let mut taken = 0;
        while connection.is_idle() && connection.offer(&long, &[]).unwrap() == Offered::Taken {
            taken += 1;
        }
        let whole = frame_length(&long);
        let mut text = vec![0; 4096];
        let mut received = 0;
        while received < taken * whole {
            received += far.read(&mut text).unwrap();
            connection.flush().unwrap();
        }
        assert_eq!(received, taken * whole);
        assert!(connection.is_idle());
    }

    fn frame_length(report: &Report) -> usize {
        HEAD + postcard::to_stdvec(report).unwrap().len()
    }
}
