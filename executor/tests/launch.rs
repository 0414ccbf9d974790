//! Agents brought into containers that are real as far as `/proc` shows: cgroup, user, groups, root.

#[cfg(test)]
#[path = "launch/agents.rs"]
mod agents;
#[cfg(test)]
#[path = "launch/container.rs"]
mod container;
