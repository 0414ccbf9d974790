//! Places that a log can be written to, and waiting for them.

use std::io::{self, Write};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use task_executor::output::Echo;

/// More than anything here takes.
pub(crate) const PATIENCE: Duration = Duration::from_mins(1);

/// A standard output that keeps what it gets, once it is open.
#[derive(Clone, Default)]
pub(crate) struct Sink(Arc<(Mutex<State>, Condvar)>);

#[derive(Default)]
struct State {
    blocked: bool,
    /// Reached by who writes while it is blocked.
    reached: bool,
    /// Fails once so many bytes are written.
    room: Option<usize>,
    bytes: Vec<u8>,
}

impl Sink {
    pub(crate) fn blocked() -> Self {
        let sink = Self::default();
        sink.0.0.lock().unwrap().blocked = true;
        sink
    }

    pub(crate) fn unblock(&self) {
        self.0.0.lock().unwrap().blocked = false;
        self.0.1.notify_all();
    }

    /// Waits until somebody is held up.
    pub(crate) fn wait_until_reached(&self) {
        let state = self.0.0.lock().unwrap();
        let waited = self
            .0
            .1
            .wait_timeout_while(state, PATIENCE, |state| !state.reached);
        assert!(!waited.unwrap().1.timed_out(), "nothing was written");
    }

    pub(crate) fn set_room(&self, room: Option<usize>) {
        self.0.0.lock().unwrap().room = room;
    }

    /// What was written, once `echo` has nothing left to write.
    pub(crate) fn text(&self, echo: &Echo) -> String {
        assert!(echo.flush(PATIENCE), "the log is not written");
        String::from_utf8(self.0.0.lock().unwrap().bytes.clone()).expect("the log is UTF-8")
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut state = self.0.0.lock().unwrap();
        state.reached = true;
        self.0.1.notify_all();
        let mut state = self.0.1.wait_while(state, |state| state.blocked).unwrap();
        let mut count = bytes.len();
        if let Some(room) = &mut state.room {
            if *room == 0 {
                return Err(io::ErrorKind::StorageFull.into());
            }
            count = count.min(*room);
            *room -= count;
        }
        state.bytes.extend(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A log with a rate that nothing here exceeds.
pub(crate) fn generous(sink: &Sink) -> Echo {
    Echo::to(sink.clone(), 1 << 30, Instant::now()).unwrap()
}
