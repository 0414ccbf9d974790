//! The documents as tests see them: their blocks, links and headings, and the commands that they print, with
//! what runs each.

mod commands;
mod markdown;

pub use self::commands::{Command, RUNS, Run, commands, run_of};
pub use self::markdown::{Block, Page, read};
