//! Module names.
