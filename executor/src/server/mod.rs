//! The HTTP API on port 5758.
