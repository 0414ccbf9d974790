//! What this pod allows, and why.
