//! YAML as `kubectl` reads it, and YAML that reads back as the same JSON whoever reads it.
//!
//! `kubectl` turns YAML into JSON by the rules of YAML 1.1 with exceptions of its own: `yes` is a
//! boolean, `0777` is 511, a date is a string. What is decided offline must be decided on that same
//! JSON, so a plain scalar is read here by exactly those rules ([`scalar`]) on top of a YAML 1.2
//! parser. What is written quotes every text that any of the rules could take for something else.
//! Pure: text in, JSON out, and back.

mod read;
mod scalar;
mod write;

pub(super) use read::read;
pub(super) use write::write;
