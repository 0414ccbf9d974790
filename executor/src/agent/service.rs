//! The agent at work: one loop, one thread, which waits for nothing but an event.

use std::collections::HashMap;
use std::io::IoSliceMut;
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd, RawFd};
use std::time::Instant;

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags};
use nix::sys::signal::{Signal, kill};
use nix::sys::signalfd::SignalFd;
use nix::sys::socket::{MsgFlags, recv, recvmsg, send};
use nix::unistd::Pid;

use super::channels::{Channels, channels};
use super::connection::Closed;
use super::conversation::{Answer, Conversation, Records};
use super::descendants::{Below, Pace};
use super::oom::Attribution;
use super::probe::Probes;
use super::protocol::{MAX_FRAME, Order, Stage, StartFault, StartOrder, StopCause, TaskKey};
use super::records::{Record, Supervisor, fault};
use super::setup::{Failed, Setup};
use super::start::Task;
use super::supervisor::{self, MAX_MESSAGE, News, Wish};
use super::wait::{child_signals, ready, wait_for};
use crate::clock::unix_millis;
use crate::sys::fd::received;
use crate::sys::process::{SingleThread, Waited, fork, wait_any};

/// Tasks that are remembered at most.
const MAX_RECORDS: usize = 2048;
/// Longest note: a report with it must fit into a frame.
const MAX_NOTE: usize = MAX_FRAME - 4096;
/// The agent.
#[derive(Debug)]
pub struct Service {
    proof: SingleThread,
    /// What it has from its start.
    pub setup: Setup,
    signals: SignalFd,
    probes: Probes,
    attribution: Attribution,
    records: Records,
    /// Whom each supervisor watches.
    supervisors: HashMap<i32, TaskKey>,
    conversation: Conversation,
    /// A supervisor was killed, and what it watched may be a child of ours now.
    strays: Option<Pace>,
    /// A child was reaped since the last round of killing.
    progress: bool,
    ending: bool,
}

/// What can be waited for, by place.
struct Ready {
    control: bool,
    connection: bool,
    tasks: Vec<TaskKey>,
}

impl Service {
    /// An agent without tasks.
    ///
    /// # Errors
    ///
    /// What it lacks.
    pub fn new(proof: SingleThread, setup: Setup) -> Result<Self, Failed> {
        Ok(Self {
            proof,
            setup,
            signals: child_signals().map_err(|_| Failed::Signals)?,
            probes: Probes::new().map_err(|_| Failed::Program)?,
            attribution: Attribution::default(),
            records: Records::new(),
            supervisors: HashMap::new(),
            conversation: Conversation::default(),
            strays: None,
            progress: false,
            ending: false,
        })
    }

    /// Works until it is told to end and has no task any more.
    pub fn run(&mut self) {
        loop {
            let ready = self.wait();
            if ready.control {
                self.hear_control();
            }
            for key in ready.tasks {
                self.hear_supervisor(key);
            }
            while let Ok(Some(_)) = self.signals.read_signal() {}
            self.reap();
            self.kill_strays_if_due();
            if self.converse(ready.connection).is_err() {
                self.conversation.end(&mut self.records);
            }
            if self.ending && self.supervisors.is_empty() && self.strays.is_none() {
                return;
            }
        }
    }

    fn wait(&self) -> Ready {
        let mut fds = vec![PollFd::new(self.signals.as_fd(), PollFlags::POLLIN)];
        // Once it has hung up it is ready for ever.
        if !self.ending {
            fds.push(PollFd::new(self.setup.control.as_fd(), PollFlags::POLLIN));
        }
        let connection = self.conversation.poll_fd();
        let connected = connection.is_some();
        fds.extend(connection);
        let mut keys = Vec::new();
        for (key, record) in &self.records {
            if let Some(supervisor) = &record.supervisor {
                keys.push(*key);
                fds.push(PollFd::new(supervisor.socket.as_fd(), PollFlags::POLLIN));
            }
        }
        let congestion = self.conversation.pause();
        let round = self.strays.as_ref().map(|pace| pace.wait(Instant::now()));
        wait_for(&mut fds, congestion.into_iter().chain(round).min());
        let mut rest = fds.iter().skip(1);
        let control = !self.ending && rest.next().is_some_and(ready);
        let connection = connected && rest.next().is_some_and(ready);
        let tasks = keys.into_iter().zip(rest).filter(|(_, fd)| ready(fd));
        Ready {
            control,
            connection,
            tasks: tasks.map(|(key, _)| key).collect(),
        }
    }

    // === The executor ===

    /// Takes a new connection; at the end of the control socket, ends.
    fn hear_control(&mut self) {
        let mut byte = [0; 16];
        let mut space = nix::cmsg_space!([RawFd; 4]);
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_CMSG_CLOEXEC;
        let mut slice = [IoSliceMut::new(&mut byte)];
        let control = self.setup.control.as_raw_fd();
        let fds = match recvmsg::<()>(control, &mut slice, Some(&mut space), flags) {
            Ok(message) => {
                let fds = received(&message).unwrap_or_default();
                if message.bytes == 0 && fds.is_empty() {
                    return self.end();
                }
                fds
            }
            Err(Errno::EAGAIN | Errno::EINTR) => return,
            Err(_) => return self.end(),
        };
        if let Some(socket) = fds.into_iter().next() {
            self.conversation.begin(socket, &mut self.records);
        }
    }

    /// Obeys and tells, until there is nothing more to do or no room to tell it.
    fn converse(&mut self, readable: bool) -> Result<(), Closed> {
        if readable {
            self.conversation.receive()?;
        }
        loop {
            while let Some(order) = self.conversation.next_order()? {
                self.obey(order)?;
            }
            let held_up = !self.conversation.has_room();
            self.conversation.tell(&mut self.records)?;
            if !held_up || !self.conversation.has_room() {
                return Ok(());
            }
        }
    }

    fn obey(&mut self, order: Order) -> Result<(), Closed> {
        match order {
            Order::Hello { version: _ } => self.conversation.greet(&mut self.records),
            Order::Start(order) => self.start(*order)?,
            Order::Stop {
                key,
                cause,
                grace_millis,
            } => self.stop(key, cause, grace_millis),
            Order::Note { key, note } => {
                let note = bounded(note)?;
                if let Some(record) = self.records.get_mut(&key) {
                    record.note = note;
                } else if self.records.len() < MAX_RECORDS {
                    // Of an agent before this one.
                    let never = StartFault {
                        stage: Stage::Invalid,
                        errno: 0,
                    };
                    let record = Record::not_started(note, never, unix_millis());
                    self.records.insert(key, record);
                }
            }
            Order::Forget { key } => {
                if self.records.get(&key).is_some_and(Record::gone) {
                    self.records.remove(&key);
                }
            }
            Order::Probe { number } => {
                if let Err(fault) = self.probes.start(&self.proof, number) {
                    self.conversation.answer(Answer::Probe(number, Some(fault)));
                }
            }
            Order::Shutdown => self.end(),
        }
        Ok(())
    }

    // === Tasks ===

    fn start(&mut self, mut order: StartOrder) -> Result<(), Closed> {
        let key = order.key;
        let note = bounded(std::mem::take(&mut order.note))?;
        if self.records.contains_key(&key) {
            return Ok(());
        }
        if self.records.len() >= MAX_RECORDS {
            self.conversation.answer(Answer::Refused(key));
            return Ok(());
        }
        let mut record = match self.begin(order) {
            Ok((output, supervisor, kills_before)) => {
                self.supervisors.insert(supervisor.pid, key);
                Record::started(note, output, supervisor, kills_before)
            }
            Err(fault) => Record::not_started(note, fault, unix_millis()),
        };
        self.conversation.touch(key, &mut record);
        self.records.insert(key, record);
        Ok(())
    }

    fn begin(&mut self, order: StartOrder) -> Result<Begun, StartFault> {
        if self.ending {
            return Err(fault(Stage::Fork, Errno::ESHUTDOWN));
        }
        let task = Task::new(order, self.setup.file_limits)?;
        let channels = channels().or_else(|errno| match errno {
            Errno::EMFILE => {
                self.records
                    .values_mut()
                    .for_each(Record::close_drained_output);
                channels()
            }
            errno => Err(errno),
        });
        let Channels {
            output,
            writing,
            near,
            far,
        } = channels.map_err(|errno| fault(Stage::Pipes, errno))?;
        let kills_before = self.setup.kills.count();
        let [stdout, stderr] = writing;
        let proof = &self.proof;
        let child = move || {
            let proof = proof;
            supervisor::run(proof, &task, &far, stdout, stderr)
        };
        let pid = fork(&self.proof, child).map_err(|error| {
            fault(
                Stage::Fork,
                error.raw_os_error().map_or(Errno::EAGAIN, Errno::from_raw),
            )
        })?;
        Ok((output, Supervisor { pid, socket: near }, kills_before))
    }

    fn stop(&mut self, key: TaskKey, cause: StopCause, grace_millis: Option<u64>) {
        if let Some(record) = self.records.get(&key)
            && let Some(supervisor) = &record.supervisor
        {
            wish(
                &supervisor.socket,
                Wish {
                    cause,
                    grace_millis,
                },
            );
        }
    }

    /// Kills all tasks, and ends then.
    fn end(&mut self) {
        if !std::mem::replace(&mut self.ending, true) {
            for supervisor in self
                .records
                .values()
                .filter_map(|it| it.supervisor.as_ref())
            {
                let wanted = Wish {
                    cause: StopCause::Shutdown,
                    grace_millis: Some(0),
                };
                wish(&supervisor.socket, wanted);
            }
        }
    }

    fn hear_supervisor(&mut self, key: TaskKey) {
        let mut message = [0; MAX_MESSAGE];
        while let Some(record) = self.records.get_mut(&key)
            && let Some(supervisor) = &record.supervisor
        {
            let number = supervisor.socket.as_raw_fd();
            match recv(number, &mut message, MsgFlags::MSG_DONTWAIT) {
                Ok(length) if length > 0 => {
                    let text = message.get(..length).unwrap_or_default();
                    if let Ok(news) = postcard::from_bytes::<News>(text) {
                        record.hear(news, &self.setup.kills, &mut self.attribution);
                        self.conversation.touch(key, record);
                    }
                }
                Err(Errno::EAGAIN) => return,
                Err(Errno::EINTR) => {}
                // It ends, which `reap` sees. Its socket would be ready from now on.
                Ok(_) | Err(_) => record.supervisor = None,
            }
        }
    }

    /// Takes in which children ended. The only place where any is waited for.
    fn reap(&mut self) {
        loop {
            match wait_any(true) {
                Waited::Ended(pid, exit) => {
                    self.progress = true;
                    if let Some(key) = self.supervisors.remove(&pid) {
                        self.supervisor_ended(key);
                    } else if let Some((number, failure)) = self.probes.ended(pid, exit) {
                        self.conversation.answer(Answer::Probe(number, failure));
                    }
                }
                Waited::Stopped(pid) => {
                    // By its task: nobody else has a reason. It must not keep it from being stopped.
                    if self.is_ours(pid) {
                        let _ = kill(Pid::from_raw(pid), Signal::SIGCONT);
                    }
                }
                Waited::Nothing | Waited::NoChildren => return,
            }
        }
    }

    fn supervisor_ended(&mut self, key: TaskKey) {
        // What it said last may still be unread.
        self.hear_supervisor(key);
        if let Some(record) = self.records.get_mut(&key) {
            record.supervisor = None;
            if !record.gone() {
                record.orphan(unix_millis());
                self.conversation.touch(key, record);
                self.strays = Some(Pace::new(Instant::now()));
            }
        }
    }

    /// A child that is no stray.
    fn is_ours(&self, pid: i32) -> bool {
        self.supervisors.contains_key(&pid) || self.probes.has(pid)
    }

    /// What a killed supervisor watched has become our child, or its parents have.
    fn kill_strays_if_due(&mut self) {
        let begun = Instant::now();
        let Some(pace) = &self.strays else { return };
        if !pace.wait(begun).is_zero() {
            return;
        }
        Below::me(&|pid| self.is_ours(pid)).kill_round(&mut || {});
        // Those that end are reaped afterwards: until then their numbers are theirs.
        self.reap();
        if Below::me(&|pid| self.is_ours(pid)).is_empty() {
            self.strays = None;
            for (key, record) in &mut self.records {
                if record.no_orphans() {
                    self.conversation.touch(*key, record);
                }
            }
        } else if let Some(pace) = &mut self.strays {
            let now = Instant::now();
            pace.round(now, now - begun, std::mem::take(&mut self.progress));
        }
    }
}

type Begun = ([OwnedFd; 2], Supervisor, Option<u64>);

fn wish(supervisor: &OwnedFd, wish: Wish) {
    let mut buffer = [0; MAX_MESSAGE];
    if let Ok(message) = postcard::to_slice(&wish, &mut buffer) {
        let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
        // Fails when it has ended, which is seen elsewhere, or when it has a hundred of them unread.
        let _ = send(supervisor.as_raw_fd(), message, flags);
    }
}

/// A note, if a report can hold it.
fn bounded(note: Vec<u8>) -> Result<Vec<u8>, Closed> {
    if note.len() > MAX_NOTE {
        Err(Closed)
    } else {
        Ok(note)
    }
}
