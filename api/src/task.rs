//! Module task.
