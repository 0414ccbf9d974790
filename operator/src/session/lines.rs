//! Lines of a stream, however they were cut on the way. Pure but for the memory it is counted with.

use bytes::{Buf as _, Bytes, BytesMut};

use super::memory::Share;

/// A line that is longer than any that makes sense, or no memory for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Error {
    #[error("sends a line of more than {0} bytes")]
    TooLong(usize),
    #[error("sends more than there is memory for at the moment")]
    NoMemory,
}

/// Pieces become lines.
#[derive(Debug)]
pub(super) struct Lines {
    buffer: BytesMut,
    /// Bytes of the buffer that are known to hold no line feed.
    scanned: usize,
    most: usize,
    share: Share,
}

impl Lines {
    /// Lines of at most so many bytes.
    pub(super) fn new(most: usize, share: Share) -> Self {
        Self {
            buffer: BytesMut::new(),
            scanned: 0,
            most,
            share,
        }
    }

    /// Takes a piece. Take out all lines before the next.
    pub(super) fn push(&mut self, piece: &[u8]) -> Result<(), Error> {
        let length = self.buffer.len() + piece.len();
        if !self.share.resize(length) {
            return Err(Error::NoMemory);
        }
        self.buffer.extend_from_slice(piece);
        Ok(())
    }

    /// The next whole line, without its line feed.
    pub(super) fn next(&mut self) -> Result<Option<Bytes>, Error> {
        let end = self.buffer[self.scanned..]
            .iter()
            .position(|byte| *byte == b'\n')
            .map(|at| self.scanned + at);
        let length = end.unwrap_or(self.buffer.len());
        if length > self.most {
            return Err(Error::TooLong(self.most));
        }
        let Some(end) = end else {
            self.scanned = self.buffer.len();
            if self.buffer.is_empty() {
                // Whatever a long line needed is not needed any more.
                self.buffer = BytesMut::new();
                self.share.resize(0);
            }
            return Ok(None);
        };
        let line = self.buffer.split_to(end).freeze();
        self.buffer.advance(1);
        self.scanned = 0;
        Ok(Some(line))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::super::memory::Memory;
    use super::*;

    fn lines(most: usize) -> Lines {
        Lines::new(most, Memory::new(1024 * 1024).share())
    }

    proptest! {
        #[test]
        fn lines_do_not_depend_on_how_they_were_cut(
            text in prop::collection::vec("[a-z]{0,9}", 0..9),
            cuts in prop::collection::vec(1_usize..7, 1..40),
        ) {
            let whole: Vec<u8> = text.iter().flat_map(|line| format!("{line}\n").into_bytes()).collect();
            let mut lines = lines(100);
            let mut seen = Vec::new();
            let mut rest = whole.as_slice();
            for cut in cuts.iter().cycle() {
                if rest.is_empty() {
                    break;
                }
                let (piece, after) = rest.split_at((*cut).min(rest.len()));
                rest = after;
                lines.push(piece).unwrap();
                while let Some(line) = lines.next().unwrap() {
                    seen.push(String::from_utf8(line.to_vec()).unwrap());
                }
            }
            prop_assert_eq!(seen, text);
        }
    }

    #[test]
    fn endless_line_is_refused_with_or_without_its_end() {
        let mut endless = lines(10);
        endless.push(b"0123456789").unwrap();
        assert_eq!(endless.next(), Ok(None));
        endless.push(b"0").unwrap();
        assert_eq!(endless.next(), Err(Error::TooLong(10)));
        let mut ended = lines(10);
        ended.push(b"ok\n01234567890\n").unwrap();
        assert_eq!(ended.next(), Ok(Some(Bytes::from("ok"))));
        assert_eq!(ended.next(), Err(Error::TooLong(10)));
    }

    #[test]
    fn memory_is_given_back_after_a_long_line() {
        let memory = Memory::new(64 * 1024);
        let mut lines = Lines::new(1024 * 1024, memory.share());
        lines.push(&vec![b'a'; 70 * 1024]).unwrap();
        assert_eq!(lines.push(&vec![b'a'; 70 * 1024]), Err(Error::NoMemory));
        lines.push(b"\n").unwrap();
        assert!(lines.next().unwrap().is_some());
        assert_eq!(lines.next(), Ok(None));
        assert!(memory.share().resize(80 * 1024));
    }
}
