//! A bounded buffer of the last bytes of a stream, addressed by their offset in the stream.

use std::collections::VecDeque;

/// Smallest allocation; a task that prints a line needs no more.
const FIRST_ALLOCATION: usize = 1024;

/// The last bytes of a stream.
///
/// Offsets count from the first byte that was ever appended. What falls out at the front stays counted:
/// it is exactly the bytes before [`Self::start`].
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    bytes: VecDeque<u8>,
    /// Offset after the last byte.
    end: u64,
}

impl Ring {
    /// Offset of the first byte held.
    pub(super) fn start(&self) -> u64 {
        self.end - self.bytes.len() as u64
    }

    /// Offset after the last byte: how many were appended in all.
    pub(super) fn end(&self) -> u64 {
        self.end
    }

    /// How many bytes fell out.
    pub(super) fn dropped(&self) -> u64 {
        self.start()
    }

    /// How many bytes are held.
    pub(super) fn len(&self) -> usize {
        self.bytes.len()
    }

    /// How many bytes of memory are used.
    pub(super) fn memory(&self) -> usize {
        self.bytes.capacity()
    }

    /// How much memory it would use after `more` bytes, if it may use `limit` at most: what it uses, or
    /// the next power of two, so that a byte is moved a bounded number of times.
    pub(super) fn wanted(&self, more: usize, limit: usize) -> usize {
        let needed = self.bytes.len().saturating_add(more).min(limit);
        if needed <= self.memory() {
            return self.memory();
        }
        needed
            .checked_next_power_of_two()
            .unwrap_or(needed)
            .clamp(FIRST_ALLOCATION, limit.max(FIRST_ALLOCATION))
            .min(limit)
    }

    /// Appends, holding the last `limit` bytes and using at most `limit` bytes of memory, or what it
    /// already uses.
    pub(super) fn append(&mut self, bytes: &[u8], limit: usize) {
        self.end += bytes.len() as u64;
        let kept = &bytes[bytes.len().saturating_sub(limit)..];
        let surplus = (self.bytes.len() + kept.len()).saturating_sub(limit);
        self.bytes.drain(..surplus.min(self.bytes.len()));
        let wanted = self.wanted(kept.len(), limit);
        if wanted > self.memory() {
            self.bytes.reserve_exact(wanted - self.bytes.len());
        }
        self.bytes.extend(kept);
    }

    /// Drops all but the last `keep` bytes, and gives their memory back.
    pub(super) fn shrink(&mut self, keep: usize) {
        let surplus = self.bytes.len().saturating_sub(keep);
        self.bytes.drain(..surplus);
        self.bytes.shrink_to_fit();
    }

    /// Drops everything; offsets go on.
    pub(super) fn clear(&mut self) {
        self.bytes = VecDeque::new();
    }

    /// At most `max` bytes from `offset` on, which has to be one that is held; none beyond the end.
    pub(super) fn read(&self, offset: u64, max: usize) -> Vec<u8> {
        let skip = offset.saturating_sub(self.start());
        let skip =
            usize::try_from(skip).map_or(self.bytes.len(), |skip| skip.min(self.bytes.len()));
        let length = (self.bytes.len() - skip).min(max);
        let (front, back) = self.bytes.as_slices();
        let mut read = Vec::with_capacity(length);
        let from_front = &front[skip.min(front.len())..(skip + length).min(front.len())];
        read.extend_from_slice(from_front);
        let skip = skip.saturating_sub(front.len());
        read.extend_from_slice(&back[skip..skip + length - from_front.len()]);
        read
    }

    /// Where the last `lines` lines begin, and whether none of their bytes fell out. There may have been
    /// fewer lines. A last line without line feed is a line.
    pub(super) fn last_lines(&self, lines: u64) -> (u64, bool) {
        if lines == 0 || self.bytes.is_empty() {
            return (self.end, lines == 0 || self.end == 0);
        }
        let body = self.bytes.len() - 1; // a line feed at the very end ends the last line
        let mut seen = 0;
        for (position, byte) in self.bytes.range(..body).enumerate().rev() {
            if *byte == b'\n' {
                seen += 1;
                if seen == lines {
                    return (self.start() + position as u64 + 1, true);
                }
            }
        }
        (self.start(), self.start() == 0)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Append(Vec<u8>),
        Shrink(usize),
        Clear,
    }

    fn step() -> impl Strategy<Value = Step> {
        let byte = prop_oneof![Just(b'\n'), any::<u8>()];
        prop_oneof![
            8 => prop::collection::vec(byte, 0..200).prop_map(Step::Append),
            1 => (0_usize..100).prop_map(Step::Shrink),
            1 => Just(Step::Clear),
        ]
    }

    /// Everything that was ever written, and where what is held begins.
    #[derive(Default)]
    struct Model {
        all: Vec<u8>,
        start: usize,
    }

    impl Model {
        fn last_lines(&self, lines: u64) -> (u64, bool) {
            let held = &self.all[self.start..];
            let whole = held.strip_suffix(b"\n").unwrap_or(held);
            let starts: Vec<usize> = if held.is_empty() {
                Vec::new()
            } else {
                let after = whole.iter().enumerate().filter(|(_, byte)| **byte == b'\n');
                std::iter::once(0)
                    .chain(after.map(|(at, _)| at + 1))
                    .collect()
            };
            let Some(from_first) = starts.len().checked_sub(usize::try_from(lines).unwrap()) else {
                return (self.start as u64, self.start == 0);
            };
            let start = starts.get(from_first).copied().unwrap_or(held.len());
            let complete = from_first > 0 || lines == 0 || self.start == 0;
            ((self.start + start) as u64, complete)
        }
    }

    proptest! {
        #[test]
        fn holds_the_last_bytes_and_counts_the_others(
            steps in prop::collection::vec(step(), 1..60),
            limit in 1_usize..5000,
            (from, max, lines) in (0_u64..20_000, 0_usize..6000, 0_u64..40),
        ) {
            let (mut ring, mut model) = (Ring::default(), Model::default());
            for step in steps {
                match step {
                    Step::Append(bytes) => {
                        ring.append(&bytes, limit);
                        model.all.extend(&bytes);
                        model.start = model.start.max(model.all.len().saturating_sub(limit));
                    }
                    Step::Shrink(keep) => {
                        ring.shrink(keep);
                        model.start = model.start.max(model.all.len().saturating_sub(keep));
                        prop_assert!(ring.memory() <= keep.max(ring.len()));
                    }
                    Step::Clear => {
                        ring.clear();
                        model.start = model.all.len();
                        prop_assert_eq!(ring.memory(), 0);
                    }
                }
                prop_assert_eq!(ring.end(), model.all.len() as u64);
                prop_assert_eq!(ring.dropped(), model.start as u64);
                prop_assert_eq!(ring.dropped() + ring.len() as u64, ring.end());
                prop_assert!(ring.memory() <= limit);
                prop_assert_eq!(ring.last_lines(lines), model.last_lines(lines));
            }
            let from = from.clamp(ring.start(), ring.end());
            let expected = &model.all[usize::try_from(from).unwrap()..];
            prop_assert_eq!(ring.read(from, max), &expected[..max.min(expected.len())]);
        }
    }

    #[test]
    fn a_few_bytes_need_little_memory() {
        let mut ring = Ring::default();
        ring.append(b"0123456789", 1024 * 1024);
        assert_eq!(ring.memory(), FIRST_ALLOCATION);
        ring.append(&vec![b'x'; 100_000], 1024 * 1024);
        assert_eq!(ring.memory(), 128 * 1024);
        ring.append(&vec![b'x'; 3_000_000], 1024 * 1024);
        assert_eq!((ring.memory(), ring.len()), (1024 * 1024, 1024 * 1024));
        ring.shrink(5);
        assert_eq!((ring.memory(), ring.dropped()), (5, 3_100_005));
    }
}
