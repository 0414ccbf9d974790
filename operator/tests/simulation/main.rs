//! Thousands of random schedules of everything that can happen to the operator, each from a seed.
//!
//! A world in virtual time: an API server with versions and preconditions, watches that lag, repeat and
//! skip, a kubelet, executors, users; and in it the operator's own state machines, wired as the program
//! wires them, crashed between any two writes, paused, followed by another leader. After each step the
//! invariants are checked against what really is; then everything calms down, and has to settle and to
//! stay so without a write.
//!
//! `OPENSANDBOX_SIM_SEED=7` runs the one schedule of seed 7 and prints its story;
//! `OPENSANDBOX_SIM_RUNS=10000` runs so many, from seed 0 or from `OPENSANDBOX_SIM_FIRST` on.

#![forbid(unsafe_code)]
#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod check;
mod check_tasks;
#[cfg(test)]
mod check_tests;
mod executor;
mod forgeries;
mod kubelet;
mod replica;
mod rng;
mod session;
mod settled;
mod store;
mod story;
mod users;
mod views;
mod world;
mod writes;

use std::fmt::Write as _;

use world::World;

/// Schedules of a run that names no other number.
const RUNS: u64 = 200;
/// Virtual milliseconds in which everything has to settle: pods that never start are given up after
/// five minutes, and refused creations are tried again after at most five.
const SETTLING: i64 = 30 * 60_000;
/// Virtual milliseconds after that without a write.
const QUIET: i64 = 60 * 60_000;
/// Lines of the story that a failure shows.
const SHOWN: usize = 2_000;

/// Runs one schedule. What went wrong, with its story if it was traced.
fn run(seed: u64, traced: bool) -> Result<u64, (String, Vec<String>)> {
    let mut world = World::new(seed, traced);
    world.run_until(world.profile.turbulence + SETTLING);
    if world.check.violation.is_none() {
        world.check_settled();
    }
    let writes = world.check.writes;
    world.run_until(world.profile.turbulence + SETTLING + QUIET);
    if world.check.violation.is_none() && world.check.writes != writes {
        let more = world.check.writes - writes;
        world
            .check
            .fail(format!("{more} writes although nothing happens"));
    }
    match world.check.violation.take() {
        None => Ok(writes),
        Some(violation) => Err((
            format!(
                "at {} ms with {:?}: {violation}",
                world.now(),
                world.profile
            ),
            world.trace.unwrap_or_default(),
        )),
    }
}

/// Runs one schedule again with its story, which a seed makes the same.
fn story(seed: u64) -> String {
    let mut text = String::new();
    match run(seed, true) {
        Ok(writes) => {
            write!(text, "seed {seed}: nothing wrong, {writes} writes").ok();
        }
        Err((violation, lines)) => {
            for line in &lines[lines.len().saturating_sub(SHOWN)..] {
                writeln!(text, "{line}").ok();
            }
            write!(text, "seed {seed} {violation}").ok();
        }
    }
    text
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

#[test]
fn invariants_hold_in_every_schedule() {
    if let Some(seed) = variable("OPENSANDBOX_SIM_SEED") {
        let text = story(seed);
        eprintln!("{text}");
        assert!(run(seed, false).is_ok(), "see above");
        return;
    }
    let runs = variable("OPENSANDBOX_SIM_RUNS").unwrap_or(RUNS);
    let first = variable("OPENSANDBOX_SIM_FIRST").unwrap_or(0);
    let mut writes = 0;
    let mut failed = Vec::new();
    for seed in first..first.saturating_add(runs) {
        match run(seed, false) {
            Ok(more) => writes += more,
            Err((violation, _)) => failed.push((seed, violation)),
        }
    }
    if let Some((seed, _)) = failed.first() {
        eprintln!("{}", story(*seed));
    }
    for (seed, violation) in &failed {
        eprintln!("seed {seed} {violation}");
    }
    assert!(
        failed.is_empty(),
        "{} of {runs} schedules failed; see one with OPENSANDBOX_SIM_SEED",
        failed.len()
    );
    assert!(writes > runs, "the operator does something");
}
