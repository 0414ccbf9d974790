//! Module conditions.
