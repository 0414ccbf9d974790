//! Output made into lines that are safe to show.

use std::borrow::Cow;
use std::io::Write as _;
use std::time::{Duration, Instant};

/// Longest piece of a line in the log, in bytes of output; what is longer is split.
pub(super) const MAX_LINE: usize = 8 * 1024;
/// Longest name, in characters; longer ones do not get past the API.
const MAX_NAME: usize = 253;
/// How long a line that is not complete is held back.
const PATIENCE: Duration = Duration::from_secs(1);

/// A line, or a part of one, of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// Without the line feed.
    pub(super) text: &'a [u8],
    /// It goes on with the line of the piece before.
    pub(super) continued: bool,
    /// How many bytes of the stream it stands for.
    pub(super) bytes: u64,
}

impl Piece<'_> {
    /// The pieces before have said everything: the line was cut just before its end.
    pub(super) fn says_nothing(&self) -> bool {
        self.continued && self.text.is_empty()
    }
}

/// Cuts a stream into lines.
#[derive(Debug, Default)]
pub(super) struct Splitter {
    /// The begin of a line; at most [`MAX_LINE`] bytes.
    partial: Vec<u8>,
    /// When its first byte came.
    since: Option<Instant>,
    continued: bool,
}

impl Splitter {
    /// Gives every piece that `bytes` completes to `emit`. Once that says `false` the lines left are
    /// passed over; the number of their bytes is returned.
    pub(super) fn push(
        &mut self,
        bytes: &[u8],
        now: Instant,
        mut emit: impl FnMut(Piece<'_>) -> bool,
    ) -> u64 {
        let mut rest = bytes;
        let mut passed = 0;
        let mut wanted = true;
        while let Some(line_feed) = rest.iter().position(|byte| *byte == b'\n') {
            let line = self.after_partial(&rest[..line_feed]);
            rest = &rest[line_feed + 1..];
            let (last, unwanted) = self.cut(&line, &mut wanted, &mut emit);
            passed += unwanted;
            let count = last.len() as u64 + 1;
            let text = last.strip_suffix(b"\r").unwrap_or(last);
            let continued = std::mem::take(&mut self.continued);
            if wanted {
                wanted = emit(Piece {
                    text,
                    continued,
                    bytes: count,
                });
            } else {
                passed += count;
            }
            if !wanted {
                let end = rest.iter().rposition(|byte| *byte == b'\n');
                let end = end.map_or(0, |end| end + 1);
                passed += end as u64;
                rest = &rest[end..];
            }
        }
        if rest.is_empty() {
            return passed;
        }
        let since = self.since.unwrap_or(now);
        let line = self.after_partial(rest);
        let (last, unwanted) = self.cut(&line, &mut wanted, &mut emit);
        self.partial.extend_from_slice(last);
        self.since = Some(since);
        passed + unwanted
    }

    /// When [`Self::flush`] is due.
    pub(super) fn due(&self) -> Option<Instant> {
        self.since.map(|since| since + PATIENCE)
    }

    /// Gives the line that is not complete to `emit`.
    pub(super) fn flush(&mut self, emit: impl FnOnce(Piece<'_>)) {
        let partial = std::mem::take(&mut self.partial);
        self.since = None;
        if !partial.is_empty() {
            emit(Piece {
                text: &partial,
                continued: self.continued,
                bytes: partial.len() as u64,
            });
            self.continued = true;
        }
    }

    fn after_partial<'a>(&mut self, more: &'a [u8]) -> Cow<'a, [u8]> {
        self.since = None;
        if self.partial.is_empty() {
            return Cow::Borrowed(more);
        }
        let mut line = std::mem::take(&mut self.partial);
        line.extend_from_slice(more);
        Cow::Owned(line)
    }

    /// Emits pieces until no more than [`MAX_LINE`] bytes are left; returns those, and how many were
    /// passed over.
    fn cut<'a>(
        &mut self,
        mut line: &'a [u8],
        wanted: &mut bool,
        emit: &mut impl FnMut(Piece<'_>) -> bool,
    ) -> (&'a [u8], u64) {
        let mut passed = 0;
        while line.len() > MAX_LINE {
            let (text, rest) = line.split_at(character_boundary(line, MAX_LINE));
            let bytes = text.len() as u64;
            if *wanted {
                let continued = self.continued;
                *wanted = emit(Piece {
                    text,
                    continued,
                    bytes,
                });
            } else {
                passed += bytes;
            }
            self.continued = true;
            line = rest;
        }
        (line, passed)
    }
}

/// The last place at or before `limit` that is not inside a character of UTF-8; `limit` if there is none
/// near, as in what is no UTF-8.
fn character_boundary(bytes: &[u8], limit: usize) -> usize {
    (limit.saturating_sub(3)..=limit)
        .rev()
        .find(|position| bytes.get(*position).is_none_or(|byte| byte & 0xc0 != 0x80))
        .filter(|position| *position > 0)
        .unwrap_or(limit)
}

/// Appends text so that it stays on its line and shows what it is: control characters other than tab,
/// characters that turn the direction of writing, and bytes that are no UTF-8 are written as `\r`,
/// `\x1b`, `\u{202e}` or `\xff`. Not reversible: the exact bytes are had from the API.
pub(super) fn escape_text(text: &[u8], line: &mut Vec<u8>) {
    escape(text, line, |character| {
        character != '\t' && is_deceiving(character)
    });
}

/// Appends the name of a task, so that it cannot be taken for more than a name.
pub(super) fn escape_name(name: &str, line: &mut Vec<u8>) {
    let end = name.char_indices().nth(MAX_NAME);
    let name = &name[..end.map_or(name.len(), |(end, _)| end)];
    escape(name.as_bytes(), line, |character| {
        is_deceiving(character)
            || character.is_whitespace()
            || matches!(character, '[' | ']' | '\\' | '+')
    });
}

fn is_deceiving(character: char) -> bool {
    character.is_control()
        || matches!(character,
            '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

fn escape(text: &[u8], line: &mut Vec<u8>, is_escaped: impl Fn(char) -> bool) {
    for chunk in text.utf8_chunks() {
        let mut valid = chunk.valid();
        while let Some((position, character)) = valid
            .char_indices()
            .find(|(_, character)| is_escaped(*character))
        {
            line.extend_from_slice(&valid.as_bytes()[..position]);
            // Writing to a vector does not fail.
            let _ = match character {
                '\r' => write!(line, "\\r"),
                ..='\x7f' => write!(line, "\\x{:02x}", u32::from(character)),
                _ => write!(line, "\\u{{{:x}}}", u32::from(character)),
            };
            valid = &valid[position + character.len_utf8()..];
        }
        line.extend_from_slice(valid.as_bytes());
        for byte in chunk.invalid() {
            let _ = write!(line, "\\x{byte:02x}");
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn escaped(text: &[u8]) -> String {
        let mut line = Vec::new();
        escape_text(text, &mut line);
        String::from_utf8(line).expect("always UTF-8")
    }

    fn escaped_name(name: &str) -> String {
        let mut line = Vec::new();
        escape_name(name, &mut line);
        String::from_utf8(line).expect("always UTF-8")
    }

    /// Text, whether it is continued, and how many bytes it stands for.
    type Seen = (Vec<u8>, bool, u64);

    fn seen(piece: Piece<'_>) -> Seen {
        (piece.text.to_vec(), piece.continued, piece.bytes)
    }

    fn split(parts: &[&[u8]]) -> Vec<Seen> {
        let (mut splitter, mut pieces) = (Splitter::default(), Vec::new());
        for part in parts {
            splitter.push(part, Instant::now(), |piece| {
                pieces.push(seen(piece));
                true
            });
        }
        splitter.flush(|piece| pieces.push(seen(piece)));
        pieces
    }

    #[test]
    fn what_cannot_be_shown_is_made_visible() {
        assert_eq!(
            escaped(b"plain\ttext \\ \"quoted\""),
            "plain\ttext \\ \"quoted\""
        );
        assert_eq!(escaped("Grüße 你好 🦀".as_bytes()), "Grüße 你好 🦀");
        assert_eq!(
            escaped(b"\x1b[31mred\x1b[0m\r50%\0\x7f"),
            "\\x1b[31mred\\x1b[0m\\r50%\\x00\\x7f"
        );
        assert_eq!(escaped(b"a\xff\xc3(b\xe4\xbd"), "a\\xff\\xc3(b\\xe4\\xbd");
        assert_eq!(
            escaped("\u{85}\u{2028}\u{202e}".as_bytes()),
            "\\u{85}\\u{2028}\\u{202e}"
        );
    }

    #[test]
    fn a_name_is_only_a_name() {
        assert_eq!(escaped_name("build-1.x_ü"), "build-1.x_ü");
        assert_eq!(
            escaped_name("a stdout] x\n[b\\+\u{a0}"),
            "a\\x20stdout\\x5d\\x20x\\x0a\\x5bb\\x5c\\x2b\\u{a0}"
        );
        assert_eq!(escaped_name(&"é".repeat(1000)), "é".repeat(MAX_NAME));
    }

    #[test]
    fn lines_are_cut_at_their_ends_and_at_the_limit() {
        assert_eq!(
            split(&[b"one\ntw", b"o\r\n\nrest"]),
            [
                (b"one".to_vec(), false, 4),
                (b"two".to_vec(), false, 5),
                (Vec::new(), false, 1),
                (b"rest".to_vec(), false, 4),
            ]
        );
        let full = vec![b'x'; MAX_LINE];
        assert_eq!(
            split(&[&full, b"\n", &full, b"y\nnext\n"]),
            [
                (full.clone(), false, MAX_LINE as u64 + 1),
                (full.clone(), false, MAX_LINE as u64),
                (b"y".to_vec(), true, 2),
                (b"next".to_vec(), false, 5),
            ]
        );
        let wide = "€".repeat(MAX_LINE); // 3 bytes each, and the limit is no multiple of 3
        let pieces = split(&[wide.as_bytes()]);
        assert!(pieces.len() > 3);
        assert!(
            pieces
                .iter()
                .all(|(text, ..)| std::str::from_utf8(text).is_ok())
        );
    }

    #[test]
    fn a_line_that_was_shown_early_goes_on() {
        let (mut splitter, mut pieces) = (Splitter::default(), Vec::new());
        let now = Instant::now();
        splitter.push(b"Password: ", now, |_| false);
        assert_eq!(splitter.due(), Some(now + PATIENCE));
        splitter.flush(|piece| pieces.push(seen(piece)));
        assert_eq!(splitter.due(), None);
        let mut push = |bytes: &[u8]| {
            splitter.push(bytes, now, |piece| {
                pieces.push(seen(piece));
                true
            })
        };
        push(b"\n");
        push(b"again\n");
        assert_eq!(
            pieces,
            [
                (b"Password: ".to_vec(), false, 10),
                (Vec::new(), true, 1),
                (b"again".to_vec(), false, 6)
            ]
        );
    }

    #[test]
    fn after_a_refusal_the_rest_is_passed_over() {
        let (mut splitter, mut asked) = (Splitter::default(), 0);
        let passed = splitter.push(b"1\n22\n333\nrest", Instant::now(), |_| {
            asked += 1;
            false
        });
        assert_eq!((asked, passed), (1, 7));
        let mut last = None;
        splitter.flush(|piece| last = Some(seen(piece)));
        assert_eq!(last, Some((b"rest".to_vec(), false, 4)));
    }

    proptest! {
        #[test]
        fn every_byte_is_in_one_piece(
            parts in prop::collection::vec(
                prop_oneof![
                    prop::collection::vec(prop_oneof![Just(b'\n'), Just(b'x'), any::<u8>()], 0..100),
                    (1_usize..40_000).prop_map(|length| vec![b'z'; length]),
                ],
                0..12,
            ),
            refused in 0_usize..40,
        ) {
            let mut splitter = Splitter::default();
            let (mut given, mut passed, mut number) = (0, 0, 0);
            for part in &parts {
                let mut fine = true;
                passed += splitter.push(part, Instant::now(), |piece| {
                    fine &= !piece.text.contains(&b'\n') && piece.text.len() <= MAX_LINE;
                    given += piece.bytes;
                    number += 1;
                    number != refused
                });
                prop_assert!(fine);
                prop_assert!(splitter.partial.len() <= MAX_LINE);
                prop_assert_eq!(splitter.since.is_some(), !splitter.partial.is_empty());
            }
            splitter.flush(|piece| given += piece.bytes);
            prop_assert_eq!(given + passed, parts.iter().map(Vec::len).sum::<usize>() as u64);
        }

        #[test]
        fn what_is_escaped_stays_on_its_line(text in prop::collection::vec(any::<u8>(), 0..300)) {
            let line = escaped(&text);
            prop_assert!(!line.chars().any(|character| character != '\t' && is_deceiving(character)));
            let name = String::from_utf8_lossy(&text);
            let name = escaped_name(&name);
            let is_name = !name.chars().any(|one| one.is_whitespace() || "[]+".contains(one));
            prop_assert!(is_name);
        }
    }
}
