//! Numbers that a soak sets higher.

#![cfg(test)]

/// The number in this variable, or another one.
pub(crate) fn number(variable: &str, otherwise: usize) -> usize {
    match std::env::var(variable) {
        Ok(text) => text
            .parse()
            .unwrap_or_else(|error| panic!("{variable}={text}: {error}")),
        Err(_) => otherwise,
    }
}
