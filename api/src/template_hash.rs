//! Module template_hash.
