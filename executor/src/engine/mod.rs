//! The list of tasks and what becomes of them.
