//! What the documents say is so: links, YAML, commands, and monitoring. No cluster is needed.

#![cfg(test)]

mod commands;
mod examples;
mod links;
mod monitoring;
