//! The output of all tasks, within one budget.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::Notify;

use super::Stream;
use super::ring::Ring;

/// Where to read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum From {
    /// An offset in the stream. One that has fallen out stands for the first that is held, one that has
    /// not been written yet for the end.
    Offset(u64),
    /// So many bytes before the end.
    TailBytes(u64),
    /// So many lines before the end.
    TailLines(u64),
}

/// A part of a stream.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chunk {
    /// Offset of the first byte.
    pub offset: u64,
    /// The bytes.
    pub bytes: Bytes,
    /// How many bytes that were asked for fell out before `offset`.
    pub dropped_before: u64,
    /// The stream has ended, and nothing follows these bytes.
    pub end: bool,
}

impl Chunk {
    /// Where to read on.
    pub fn next_offset(&self) -> u64 {
        self.offset + self.bytes.len() as u64
    }
}

/// What was stored since the start of the program; bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    /// Read from tasks.
    pub written: u64,
    /// Dropped, because a buffer or the budget was full. What is forgotten with its task is not counted.
    pub dropped: u64,
    /// Memory in use.
    pub memory: u64,
}

/// The output of all tasks.
///
/// When the budget is used up, a task that wants more gets it from the task that ended longest ago, which
/// loses everything it still holds; once no ended one holds anything, from the running one that
/// holds most, which loses the older half; and if it holds most itself, from its own oldest bytes.
#[derive(Clone, Debug)]
pub struct Outputs {
    store: Arc<Mutex<Store>>,
}

#[derive(Debug)]
struct Store {
    /// Per stream.
    stream_limit: usize,
    total_limit: u64,
    next_task: u64,
    next_end: u64,
    tasks: BTreeMap<u64, Held>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Held {
    rings: [Ring; 2],
    closed: [bool; 2],
    /// Set when the task ended; grows in the order they did.
    ended: Option<u64>,
}

impl Held {
    fn memory(&self) -> u64 {
        self.rings.iter().map(|ring| ring.memory() as u64).sum()
    }

    fn len(&self) -> u64 {
        self.rings.iter().map(|ring| ring.len() as u64).sum()
    }
}

impl Outputs {
    /// For `stream_limit` bytes per stream and `total_limit` in all.
    pub fn new(stream_limit: u32, total_limit: u64) -> Self {
        let store = Store {
            stream_limit: stream_limit as usize,
            total_limit,
            next_task: 0,
            next_end: 0,
            tasks: BTreeMap::new(),
            counts: Counts::default(),
        };
        Self {
            store: Arc::new(Mutex::new(store)),
        }
    }

    /// Makes room for the output of a task. It is forgotten when the last reference is dropped.
    pub fn open(&self) -> Arc<TaskOutput> {
        let mut store = lock(&self.store);
        let id = store.next_task;
        store.next_task += 1;
        store.tasks.insert(id, Held::default());
        Arc::new(TaskOutput {
            id,
            store: Arc::clone(&self.store),
            news: Notify::new(),
        })
    }

    /// What was stored so far.
    pub fn counts(&self) -> Counts {
        lock(&self.store).counts
    }
}

/// The output of one task: both streams.
#[derive(Debug)]
pub struct TaskOutput {
    id: u64,
    store: Arc<Mutex<Store>>,
    news: Notify,
}

impl TaskOutput {
    /// At most `max` bytes of a stream, those from `from` on that come first.
    pub fn read(&self, stream: Stream, from: From, max: usize) -> Chunk {
        let store = lock(&self.store);
        let Some(held) = store.tasks.get(&self.id) else {
            // Only a dropped task is missing.
            return Chunk {
                offset: 0,
                bytes: Bytes::new(),
                dropped_before: 0,
                end: true,
            };
        };
        let ring = &held.rings[stream.index()];
        let (asked, offset) = match from {
            From::Offset(asked) => (asked, asked),
            From::TailBytes(count) => {
                let asked = ring.end().saturating_sub(count);
                (asked, asked)
            }
            From::TailLines(count) => match ring.last_lines(count) {
                (offset, true) => (offset, offset),
                (offset, false) => (0, offset),
            },
        };
        let offset = offset.clamp(ring.start(), ring.end());
        let bytes = Bytes::from(ring.read(offset, max));
        Chunk {
            offset,
            dropped_before: offset.saturating_sub(asked),
            end: held.closed[stream.index()] && offset + bytes.len() as u64 == ring.end(),
            bytes,
        }
    }

    /// Waits until a stream has more than `beyond` bytes, or has ended.
    pub async fn changed(&self, stream: Stream, beyond: u64) {
        self.until(|held| held.rings[stream.index()].end() > beyond || held.closed[stream.index()])
            .await;
    }

    /// Waits until both streams have ended.
    pub async fn closed(&self) {
        self.until(|held| held.closed == [true; 2]).await;
    }

    /// How many bytes were written to a stream, and how many of those are no longer held.
    pub fn written(&self, stream: Stream) -> (u64, u64) {
        let store = lock(&self.store);
        store.tasks.get(&self.id).map_or((0, 0), |held| {
            let ring = &held.rings[stream.index()];
            (ring.end(), ring.dropped())
        })
    }

    /// Notes that the task has ended: from now on its bytes are the first to go. What it left behind may
    /// still print.
    pub fn end(&self) {
        let store = &mut *lock(&self.store);
        let Some(held) = store.tasks.get_mut(&self.id) else {
            return;
        };
        if held.ended.is_none() {
            held.ended = Some(store.next_end);
            store.next_end += 1;
            let before = held.memory();
            for ring in &mut held.rings {
                ring.shrink(usize::MAX);
            }
            store.counts.memory -= before - held.memory();
        }
    }

    /// Ends a stream: nothing comes any more.
    pub fn close(&self, stream: Stream) {
        if let Some(held) = lock(&self.store).tasks.get_mut(&self.id) {
            held.closed[stream.index()] = true;
        }
        self.news.notify_waiters();
    }

    /// Appends to a stream.
    pub fn append(&self, stream: Stream, bytes: &[u8]) {
        lock(&self.store).append(self.id, stream, bytes);
        self.news.notify_waiters();
    }

    async fn until(&self, condition: impl Fn(&Held) -> bool) {
        loop {
            let mut news = std::pin::pin!(self.news.notified());
            // Before looking, or what happens in between would be missed.
            news.as_mut().enable();
            if lock(&self.store).tasks.get(&self.id).is_none_or(&condition) {
                return;
            }
            news.await;
        }
    }
}

impl Drop for TaskOutput {
    fn drop(&mut self) {
        let mut store = lock(&self.store);
        if let Some(held) = store.tasks.remove(&self.id) {
            store.counts.memory -= held.memory();
        }
    }
}

impl Store {
    fn append(&mut self, id: u64, stream: Stream, bytes: &[u8]) {
        let Some(held) = self.tasks.get(&id) else {
            return;
        };
        let ring = &held.rings[stream.index()];
        let wanted = ring.wanted(bytes.len(), self.stream_limit);
        if wanted > ring.memory() {
            self.make_room(id, wanted - ring.memory());
        }
        let free = self.total_limit.saturating_sub(self.counts.memory);
        let free = usize::try_from(free).unwrap_or(usize::MAX);
        let Some(held) = self.tasks.get_mut(&id) else {
            return;
        };
        let ring = &mut held.rings[stream.index()];
        let (memory, dropped) = (ring.memory(), ring.dropped());
        ring.append(bytes, wanted.min(memory.saturating_add(free)));
        self.counts.written += bytes.len() as u64;
        self.counts.dropped += ring.dropped() - dropped;
        self.counts.memory += (ring.memory() - memory) as u64;
    }

    /// Takes memory from others until `growth` bytes are free, or nobody has to give any to `id`.
    fn make_room(&mut self, id: u64, growth: usize) {
        while self.counts.memory.saturating_add(growth as u64) > self.total_limit {
            let own = self.tasks.get(&id).map_or(0, Held::memory);
            let ended = |held: &Held| held.ended.filter(|_| held.memory() > 0);
            let first_ended = self
                .tasks
                .iter()
                .filter(|(other, _)| **other != id)
                .filter_map(|(other, held)| Some((ended(held)?, *other)))
                .min();
            let (victim, lose_all) = if let Some((_, victim)) = first_ended {
                (victim, true)
            } else {
                let largest = self.tasks.iter().max_by_key(|(_, held)| held.memory());
                match largest {
                    Some((victim, held)) if *victim != id && held.memory() > own => {
                        (*victim, false)
                    }
                    _ => return,
                }
            };
            let Some(held) = self.tasks.get_mut(&victim) else {
                return;
            };
            let (memory, length) = (held.memory(), held.len());
            if lose_all {
                held.rings.iter_mut().for_each(Ring::clear);
            } else if let Some(ring) = held.rings.iter_mut().max_by_key(|ring| ring.memory()) {
                ring.shrink(ring.memory() / 2);
            }
            self.counts.memory -= memory - held.memory();
            self.counts.dropped += length - held.len();
        }
    }
}

fn lock(store: &Mutex<Store>) -> MutexGuard<'_, Store> {
    store.lock().unwrap_or_else(PoisonError::into_inner)
}
