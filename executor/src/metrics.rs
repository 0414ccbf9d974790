//! The executor's metrics.
