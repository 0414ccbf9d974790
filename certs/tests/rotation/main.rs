//! The invariant of `plan` under random interleavings: several replicas whose reads and writes
//! overlap in any order, crashes, failed reads, a Secret that is deleted, replaced or spoilt,
//! bundles and configurations that others take away, and clocks that jump.

#![expect(clippy::tests_outside_test_module, reason = "integration test")]

mod world;

use proptest::prelude::*;

use world::{Action, REPLICAS, World, action};

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn every_leaf_verifies_at_every_step_and_all_ends_well(
        actions in prop::collection::vec(action(), 1..250)
    ) {
        let mut world = World::new();
        for action in &actions {
            if !world.loses_both(action) && !world.loses_too_many(action) {
                world.act(action);
                world.check();
            }
        }
        world.settle_down();
    }

    #[test]
    fn all_ends_well_even_when_secret_and_bundles_are_lost_together(
        actions in prop::collection::vec(action(), 1..150)
    ) {
        let mut world = World::new();
        world.unchecked = true;
        for action in &actions {
            world.act(action);
        }
        world.settle_down();
    }
}

/// Without disturbance: replicas start together, agree, rotate twice on request.
#[test]
fn three_replicas_agree_on_one_authority_and_rotate_together() {
    let mut world = World::new();
    for index in 0..REPLICAS {
        world.act(&Action::Start(index));
    }
    // Interleaved read by read, so all of them try to create the Secret.
    for _ in 0..40 {
        for index in 0..REPLICAS {
            world.step(index, false);
            world.check();
        }
    }
    let ready = |world: &World| {
        let replicas = world.replicas.iter().flatten();
        replicas.filter(|replica| replica.published).count()
    };
    assert_eq!(ready(&world), REPLICAS);
    assert_eq!(
        world.promotions, 0,
        "the first authority needs no promotion"
    );
    let first = world.secret.as_ref().map(|stored| stored.ledger.clone());
    assert!(first.is_some_and(|ledger| ledger.retired.is_empty() && ledger.next.is_none()));
    for rotation in 1..=2 {
        world.act(&Action::Rotate);
        for _ in 0..30 {
            for index in 0..REPLICAS {
                world.pass(index);
                assert_eq!(ready(&world), REPLICAS, "ready throughout");
            }
            world.advance(1);
        }
        assert_eq!(world.promotions, rotation);
    }
    world.settle_down();
    assert!(world.drops >= 1);
}
