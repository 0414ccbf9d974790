use std::collections::BTreeSet;

use super::*;
use crate::ledger::Retired;

fn id(number: u8) -> Fingerprint {
    Fingerprint::from_bytes([number; 32])
}

fn now() -> Now {
    Now {
        wall: "2026-11-24T10:00:00Z".parse().expect("a time"),
        mono: Duration::from_hours(100),
    }
}

/// An authority made `days` ago.
fn made(number: u8, days: u64) -> Ca {
    let timing = Timing::default();
    let then = crate::clock::earlier(now().wall, Duration::from_hours(24 * days));
    Ca {
        id: id(number),
        not_before: crate::clock::earlier(then, timing.skew),
        not_after: later(then, timing.authority),
    }
}

fn ledger(current: Option<Ca>, next: Option<Ca>) -> Ledger {
    Ledger {
        current,
        next,
        ..Ledger::default()
    }
}

fn bundles(entries: &[&[u8]]) -> Bundles {
    let set = |entry: &&[u8]| entry.iter().copied().map(id).collect();
    Bundles {
        entries: entries.iter().map(set).collect(),
        complete: true,
        ..Bundles::default()
    }
}

fn present(ledger: Ledger) -> Secret {
    Secret::Present {
        ledger,
        malformed: false,
        rotate: None,
    }
}

/// A replica that has been serving a leaf of `ca` for long.
fn replica(ca: &Ca) -> Memory {
    let wall = now().wall;
    Memory {
        keys: [(ca.id, ca.clone())].into(),
        leaf: Some(Held::new(
            ca.id,
            wall,
            later(wall, Timing::default().leaf),
            wall,
            None,
        )),
        trusted: BTreeSet::from([ca.id]),
        ..Memory::default()
    }
}

fn planned(view: &View, memory: &mut Memory, at: Now) -> Plan {
    if let Secret::Present { ledger, .. } = &view.secret {
        for ca in ledger.current.iter().chain(&ledger.next) {
            memory.keys.insert(ca.id, ca.clone());
        }
    }
    memory.observe(view, at);
    plan(view, memory, &Timing::default(), at)
}

fn after(seconds: u64) -> Now {
    let by = Duration::from_secs(seconds);
    Now {
        wall: later(now().wall, by),
        mono: now().mono + by,
    }
}

#[test]
fn first_replica_of_a_fresh_installation_makes_the_current_authority() {
    let view = View {
        bundles: bundles(&[&[], &[]]),
        secret: Secret::Absent,
    };
    let plan = planned(&view, &mut Memory::default(), now());
    assert_eq!(
        plan.step,
        Some(Step::Create(Ledger::default(), vec![Change::NewCurrent]))
    );
}

#[test]
fn where_others_are_published_a_first_authority_waits_and_keeps_them() {
    let view = View {
        bundles: bundles(&[&[9]]),
        secret: Secret::Absent,
    };
    let plan = planned(&view, &mut Memory::default(), now());
    let changes = vec![Change::Adopt(id(9)), Change::NewNext];
    assert_eq!(plan.step, Some(Step::Create(Ledger::default(), changes)));
}

#[test]
fn steady_state_has_no_step_and_is_published() {
    let current = made(1, 10);
    let view = View {
        bundles: bundles(&[&[1], &[1]]),
        secret: present(ledger(Some(current.clone()), None)),
    };
    let plan = planned(&view, &mut replica(&current), now());
    assert_eq!((plan.step, plan.published), (None, Some(true)));
    assert!(plan.waiting.is_empty());
}

#[test]
fn bundle_that_was_taken_away_is_put_back_at_once() {
    let current = made(1, 10);
    let view = View {
        bundles: bundles(&[&[1], &[]]),
        secret: present(ledger(Some(current.clone()), None)),
    };
    let plan = planned(&view, &mut replica(&current), now());
    assert_eq!(
        (plan.step, plan.published),
        (Some(Step::Publish), Some(false))
    );
}

#[test]
fn authority_is_replaced_after_four_fifths_of_its_life_or_on_request_once() {
    let due = |days| {
        let current = made(1, days);
        let view = View {
            bundles: bundles(&[&[1]]),
            secret: present(ledger(Some(current.clone()), None)),
        };
        planned(&view, &mut replica(&current), now()).step.is_some()
    };
    assert!(!due(291));
    assert!(due(293));
    let requested = |handled: Option<&str>| {
        let mut ledger = ledger(Some(made(1, 10)), None);
        ledger.handled = handled.map(str::to_owned);
        let view = View {
            bundles: bundles(&[&[1]]),
            secret: Secret::Present {
                ledger,
                malformed: false,
                rotate: Some("tuesday".to_owned()),
            },
        };
        planned(&view, &mut replica(&made(1, 10)), now()).step
    };
    let Some(Step::Update(_, changes)) = requested(Some("monday")) else {
        panic!("no rotation");
    };
    assert_eq!(
        changes,
        [Change::NewNext, Change::Handled("tuesday".to_owned())]
    );
    assert_eq!(requested(Some("tuesday")), None);
}

#[test]
fn next_authority_is_promoted_only_after_it_was_everywhere_for_the_settling_time() {
    let (current, next) = (made(1, 300), made(2, 0));
    let secret = present(ledger(Some(current.clone()), Some(next)));
    let everywhere = View {
        bundles: bundles(&[&[1, 2], &[1, 2]]),
        secret: secret.clone(),
    };
    let mut memory = replica(&current);
    let plan = planned(&everywhere, &mut memory, now());
    assert_eq!(plan.step, None);
    assert_eq!(
        plan.look_again,
        Duration::from_secs(10),
        "a deadline, not a poll"
    );
    assert_eq!(planned(&everywhere, &mut memory, after(9)).step, None);
    // Somebody takes it away for a moment: the time begins anew.
    let partly = View {
        bundles: bundles(&[&[1, 2], &[1]]),
        secret,
    };
    assert_eq!(
        planned(&partly, &mut memory, after(9)).step,
        Some(Step::Publish)
    );
    assert_eq!(planned(&everywhere, &mut memory, after(11)).step, None);
    let step = planned(&everywhere, &mut memory, after(21)).step;
    assert!(matches!(step, Some(Step::Update(_, changes)) if changes == [Change::Promote]));
}

#[test]
fn retired_authority_stays_until_both_clocks_agree_that_its_leafs_are_gone() {
    let current = made(2, 1);
    let mut ledger = ledger(Some(current.clone()), None);
    let since = now().wall;
    ledger.retired.push(Retired {
        id: id(1),
        since,
        dropped: false,
    });
    let view = View {
        bundles: bundles(&[&[1, 2]]),
        secret: present(ledger),
    };
    let mut memory = replica(&current);
    assert_eq!(planned(&view, &mut memory, now()).step, None);
    let overlap = Timing::default().overlap();
    // The wall clock leaps: not enough.
    let leapt = Now {
        wall: later(since, overlap * 2),
        mono: now().mono,
    };
    let held = memory.leaf.clone();
    memory.leaf = held.map(|leaf| Held {
        not_after: Timestamp::MAX,
        renew_at: Timestamp::MAX,
        ..leaf
    });
    assert_eq!(planned(&view, &mut memory, leapt).step, None);
    let both = Now {
        wall: later(since, overlap),
        mono: now().mono + overlap,
    };
    let step = planned(&view, &mut memory, both).step;
    assert!(matches!(step, Some(Step::Update(_, changes)) if changes == [Change::Drop(id(1))]));
}

#[test]
fn deleted_or_spoilt_secret_is_written_back_from_memory() {
    let current = made(1, 10);
    let good = ledger(Some(current.clone()), None);
    let mut memory = replica(&current);
    let mut view = View {
        bundles: bundles(&[&[1]]),
        secret: present(good.clone()),
    };
    assert_eq!(planned(&view, &mut memory, now()).step, None);
    view.secret = Secret::Absent;
    let step = planned(&view, &mut memory, now()).step;
    assert_eq!(step, Some(Step::Create(good.clone(), Vec::new())));
    view.secret = Secret::Present {
        ledger: Ledger::default(),
        malformed: true,
        rotate: None,
    };
    let plan = planned(&view, &mut memory, now());
    assert_eq!(plan.step, Some(Step::Update(good, Vec::new())));
    assert_eq!(plan.published, Some(true), "calls go on");
}

#[test]
fn foreign_secret_is_taken_over_without_taking_anything_away() {
    let mine = made(1, 10);
    let mut memory = replica(&mine);
    memory.ledger = Some(ledger(Some(mine.clone()), None));
    let foreign = ledger(Some(made(7, 0)), None);
    let view = View {
        bundles: bundles(&[&[1]]),
        secret: present(foreign.clone()),
    };
    let plan = planned(&view, &mut memory, now());
    let changes = vec![Change::Adopt(id(1)), Change::Demote];
    assert_eq!(plan.step, Some(Step::Update(foreign, changes)));
    assert_eq!(memory.leaf.as_ref().map(|leaf| leaf.ca), Some(id(1)));
}

#[test]
fn leaf_is_renewed_at_two_thirds_of_its_life_without_the_api_server() {
    let current = made(1, 10);
    let mut memory = replica(&current);
    memory.ledger = Some(ledger(Some(current), None));
    let away = View::default();
    let sixteen_hours = 16 * 3600;
    assert_eq!(
        planned(&away, &mut memory, after(sixteen_hours - 1)).step,
        None
    );
    let step = planned(&away, &mut memory, after(sixteen_hours)).step;
    assert_eq!(step, Some(Step::Sign(id(1))));
}

#[test]
fn authority_and_leaf_are_renewed_when_so_much_of_their_life_is_left_as_is_asked_for() {
    let timing = Timing {
        authority_renew_before: Some(Duration::from_hours(360 * 24)),
        leaf_renew_before: Some(Duration::from_hours(23)),
        ..Timing::default()
    };
    let step = |days, seconds| {
        let current = made(1, days);
        let view = View {
            bundles: bundles(&[&[1]]),
            secret: present(ledger(Some(current.clone()), None)),
        };
        let mut memory = replica(&current);
        if let Some(leaf) = &mut memory.leaf {
            let (begin, end) = (leaf.not_before, leaf.not_after);
            *leaf = Held::new(current.id, begin, end, begin, timing.leaf_renew_before);
        }
        memory.keys.insert(current.id, current);
        memory.observe(&view, after(seconds));
        plan(&view, &memory, &timing, after(seconds)).step
    };
    assert_eq!(step(4, 3599), None);
    assert_eq!(step(4, 3600), Some(Step::Sign(id(1))));
    let due = step(5, 0);
    assert!(
        matches!(&due, Some(Step::Update(_, made)) if *made == [Change::NewNext]),
        "{due:?}"
    );
}

#[test]
fn clock_that_jumped_back_makes_a_new_leaf_and_forward_a_new_authority() {
    let current = made(1, 10);
    let secret = present(ledger(Some(current.clone()), None));
    let view = View {
        bundles: bundles(&[&[1]]),
        secret,
    };
    let jumped = |days: i64| Now {
        wall: now().wall + jiff::SignedDuration::from_hours(24 * days),
        ..now()
    };
    let step = planned(&view, &mut replica(&current), jumped(-5)).step;
    assert_eq!(step, Some(Step::Sign(id(1))));
    for days in [-20, 400] {
        let step = planned(&view, &mut replica(&current), jumped(days)).step;
        let Some(Step::Update(_, changes)) = step else {
            panic!("{days}: {step:?}");
        };
        assert_eq!(changes, [Change::NewNext]);
    }
}

#[test]
fn retired_authority_is_not_taken_up_again_when_the_clock_leaves_its_successor_behind() {
    let (old, current) = (made(1, 10), made(2, 0));
    let mut memory = replica(&current);
    memory.keys.insert(old.id, old.clone());
    let mut rotated = ledger(Some(current), None);
    rotated.retired.push(Retired {
        id: old.id,
        since: now().wall,
        dropped: false,
    });
    let mut view = View {
        bundles: bundles(&[&[1, 2]]),
        secret: present(rotated),
    };
    assert_eq!(planned(&view, &mut memory, now()).step, None);
    // Only the old one is valid at this time, and it has been in all bundles at every look.
    let back = Now {
        wall: crate::clock::earlier(now().wall, Duration::from_hours(20)),
        mono: after(60).mono,
    };
    assert!(old.valid_at(back.wall) && memory.settled(old.id, &Timing::default(), back));
    // Somebody else may be dropping it.
    let changes = [Change::NewNext, Change::Redate(old.id)];
    let step = planned(&view, &mut memory, back).step;
    assert!(
        matches!(&step, Some(Step::Update(_, made)) if *made == changes),
        "{step:?}"
    );
    // Or has dropped it, and what said so is lost.
    view.secret = Secret::Absent;
    view.bundles = Bundles::default();
    let step = planned(&view, &mut memory, back).step;
    assert!(
        matches!(&step, Some(Step::Create(_, made)) if *made == changes),
        "{step:?}"
    );
    // Between two looks nothing is known at all.
    assert_eq!(planned(&View::default(), &mut memory, back).step, None);
}

#[test]
fn unreadable_configuration_holds_back_what_needs_all_of_them() {
    let (current, next) = (made(1, 10), made(2, 0));
    let mut view = View {
        bundles: bundles(&[&[1, 2]]),
        secret: present(ledger(Some(current.clone()), Some(next))),
    };
    view.bundles.complete = false;
    let mut memory = replica(&current);
    assert_eq!(planned(&view, &mut memory, now()).step, None);
    let plan = planned(&view, &mut memory, after(60));
    assert_eq!((plan.step, plan.published), (None, None));
    // Yet the one that can be read is repaired.
    view.bundles.entries = bundles(&[&[1]]).entries;
    assert_eq!(
        planned(&view, &mut memory, after(60)).step,
        Some(Step::Publish)
    );
}
