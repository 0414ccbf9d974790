//! Bringing the agent into a running process's container with ptrace, and nothing else.
