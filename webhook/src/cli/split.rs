//! Cuts a YAML stream into its documents without reading them, so that each keeps its very text.
//!
//! YAML makes this possible: a line that begins with `---` or `...` and a space is a marker wherever
//! it stands. Comments and directives before the first marker belong to the document after it.

/// Text of one document with everything around it. The pieces of a stream, put together, are the
/// stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Piece<'a> {
    /// The whole text.
    pub(super) text: &'a str,
    /// Number of the line it begins at, from 1.
    pub(super) line: usize,
}

/// The parts of a piece.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Parts<'a> {
    /// Comments, directives and the marker before the content.
    pub(super) before: &'a str,
    /// Whether the marker's line goes on with content, so that a line break is missing after
    /// `before`.
    pub(super) inline: bool,
    /// Comments and the end marker after the content.
    pub(super) after: &'a str,
}

/// What a line is, looked at alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Line {
    /// `---`, with or without content after it.
    Start {
        content: bool,
    },
    /// `...`
    End,
    /// Blank, or a comment.
    Blank,
    /// `%YAML` and the like; content where a document has begun.
    Directive,
    Content,
}

fn classify(line: &str) -> Line {
    let marker = |word: &str| {
        let rest = line.strip_prefix(word)?;
        (rest.is_empty() || rest.starts_with([' ', '\t', '\r', '\n'])).then(|| rest.trim())
    };
    if let Some(rest) = marker("---") {
        return Line::Start {
            content: !rest.is_empty() && !rest.starts_with('#'),
        };
    }
    if marker("...").is_some() {
        return Line::End;
    }
    let trimmed = line.trim();
    if trimmed.is_empty() || trimmed.starts_with('#') {
        Line::Blank
    } else if line.starts_with('%') {
        Line::Directive
    } else {
        Line::Content
    }
}

/// Cuts a stream, which has at least one piece, be it empty.
pub(super) fn pieces(stream: &str) -> Vec<Piece<'_>> {
    let mut pieces: Vec<Piece<'_>> = Vec::new();
    let (mut start, mut start_line) = (0, 1);
    let (mut marker, mut content) = (false, false);
    let mut offset = 0;
    for (index, line) in stream.split_inclusive('\n').enumerate() {
        let end = offset + line.len();
        match classify(line) {
            Line::Start { content: more } => {
                if marker || content {
                    pieces.push(Piece {
                        text: &stream[start..offset],
                        line: start_line,
                    });
                    (start, start_line) = (offset, index + 1);
                }
                (marker, content) = (true, more);
            }
            Line::End if marker || content => {
                pieces.push(Piece {
                    text: &stream[start..end],
                    line: start_line,
                });
                (start, start_line) = (end, index + 2);
                (marker, content) = (false, false);
            }
            Line::Directive if !marker && !content => {}
            Line::End | Line::Blank => {}
            Line::Directive | Line::Content => content = true,
        }
        offset = end;
    }
    match pieces.last_mut() {
        // Comments after an end marker make no document.
        Some(last) if !marker && !content => {
            let from = start - last.text.len();
            last.text = &stream[from..];
        }
        _ => pieces.push(Piece {
            text: &stream[start..],
            line: start_line,
        }),
    }
    pieces
}

/// Finds the parts of a piece that stay when its content is written anew.
pub(super) fn parts(text: &str) -> Parts<'_> {
    let (mut before, mut inline, mut marker) = (0, false, false);
    for line in text.split_inclusive('\n') {
        match classify(line) {
            Line::Start { content: true } if !marker => {
                before += "---".len();
                inline = true;
                break;
            }
            Line::Start { .. } if !marker => marker = true,
            Line::Directive if !marker => {}
            Line::Blank | Line::End => {}
            _ => break,
        }
        before += line.len();
    }
    let mut after = text.len();
    for line in text[before..].split_inclusive('\n').rev() {
        // An indented comment may be the last line of a block scalar.
        let stays = line.trim().is_empty() || line.starts_with('#') || classify(line) == Line::End;
        if !stays || after - line.len() < before {
            break;
        }
        after -= line.len();
    }
    Parts {
        before: &text[..before],
        inline,
        after: &text[after..],
    }
}

/// Whether a piece says by itself where it begins.
pub(super) fn begins_with_marker(text: &str) -> bool {
    text.split_inclusive('\n')
        .map(classify)
        .find(|line| !matches!(line, Line::Blank | Line::Directive))
        .is_some_and(|line| matches!(line, Line::Start { .. }))
}

/// Whether a piece begins with a directive, before which the document before must be ended.
pub(super) fn begins_with_directive(text: &str) -> bool {
    text.split_inclusive('\n')
        .map(classify)
        .find(|line| *line != Line::Blank)
        == Some(Line::Directive)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cut(stream: &str) -> Vec<&str> {
        let pieces = pieces(stream);
        assert_eq!(
            pieces.iter().map(|piece| piece.text).collect::<String>(),
            stream
        );
        for piece in &pieces {
            let from = piece.text.as_ptr() as usize - stream.as_ptr() as usize;
            assert_eq!(
                piece.line,
                stream[..from].matches('\n').count() + 1,
                "{stream:?}"
            );
        }
        pieces.into_iter().map(|piece| piece.text).collect()
    }

    #[test]
    fn documents_are_cut_at_markers() {
        assert_eq!(cut(""), [""]);
        assert_eq!(cut("a: 1\n"), ["a: 1\n"]);
        assert_eq!(
            cut("# x\n---\na: 1\n---\nb: 1"),
            ["# x\n---\na: 1\n", "---\nb: 1"]
        );
        assert_eq!(cut("---\n---\na\n"), ["---\n", "---\na\n"]);
        assert_eq!(cut("a\n--- # x\nb\n"), ["a\n", "--- # x\nb\n"]);
        assert_eq!(cut("a\r\n---\r\nb\r\n"), ["a\r\n", "---\r\nb\r\n"]);
        assert_eq!(cut("a: |\n ---\n---x\n"), ["a: |\n ---\n---x\n"]);
        assert_eq!(
            cut("%YAML 1.2\n---\na\n...\n# end\n"),
            ["%YAML 1.2\n---\na\n...\n# end\n"]
        );
        assert_eq!(
            cut("a\n...\n%YAML 1.2\n---\nb\n"),
            ["a\n...\n", "%YAML 1.2\n---\nb\n"]
        );
        assert_eq!(cut("a\n...\nb\n...\n\n"), ["a\n...\n", "b\n...\n\n"]);
    }

    #[test]
    fn what_surrounds_the_content_is_found() {
        let split = |text| {
            let parts = parts(text);
            (parts.before, parts.inline, parts.after)
        };
        assert_eq!(
            split("# a\n---\n# b\nk: 1\n  # c\n# d\n\n"),
            ("# a\n---\n# b\n", false, "# d\n\n")
        );
        assert_eq!(split("--- {a: 1}\n"), ("---", true, ""));
        assert_eq!(split("k: 1\n...\n"), ("", false, "...\n"));
        assert_eq!(split("# a\n"), ("# a\n", false, ""));
    }

    #[test]
    fn a_piece_says_how_it_begins() {
        assert!(begins_with_marker("# a\n\n---\nb\n"));
        assert!(!begins_with_marker("a\n---\n"));
        assert!(!begins_with_marker(""));
        assert!(begins_with_directive("# a\n%YAML 1.2\n---\n"));
        assert!(!begins_with_directive("---\n%YAML"));
    }
}
