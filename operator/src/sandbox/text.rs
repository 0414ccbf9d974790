//! Texts of others, bounded before they are stored. Pure.

/// A text, shortened to so many bytes.
pub(super) fn cut(text: &str, bytes: usize) -> String {
    if text.len() <= bytes {
        return text.to_owned();
    }
    let end = text.floor_char_boundary(bytes.saturating_sub('…'.len_utf8()));
    format!("{}…", &text[..end])
}

#[cfg(test)]
mod tests {
    use super::cut;

    #[test]
    fn cuts_between_characters() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut("too long", 6), "too…");
        for bytes in 0..12 {
            assert!(cut("ääääää", bytes).len() <= bytes.max(3));
        }
    }
}
