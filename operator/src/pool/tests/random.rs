//! Random sequences: the invariants hold at every step, and everything comes to rest in the right state.

use proptest::prelude::*;

use super::model::{Edit, Fate, Life, Turn, World};

fn turn() -> impl Strategy<Value = Turn> {
    let number = 0..32_usize;
    let fate = prop_oneof![
        12 => Just(Fate::Works),
        2 => Just(Fate::Lost),
        2 => Just(Fate::Unclear),
        1 => Just(Fate::Refused),
    ];
    let life = prop_oneof![
        12 => Just(Life::Ready),
        4 => Just(Life::Ends),
        2 => Just(Life::Unready),
        1 => Just(Life::Fails),
        1 => Just(Life::Vanishes),
        1 => Just(Life::Deleted),
        1 => Just(Life::Evict),
    ];
    let edit = prop_oneof![
        4 => (0..3_u8, 0..4_u8, 0..4_u8, 0..6_u8)
            .prop_map(|(buffer, more, least, room)| Edit::Numbers(buffer, more, least, room)),
        2 => (0..3_u8).prop_map(Edit::Template),
        2 => (0..3_u8).prop_map(Edit::Recycle),
        1 => Just(Edit::Gone),
        2 => Just(Edit::Back),
    ];
    prop_oneof![
        20 => (number.clone(), fate).prop_map(|(number, fate)| Turn::Request(number, fate)),
        20 => number.clone().prop_map(Turn::Answer),
        25 => any::<bool>().prop_map(Turn::Watch),
        8 => Just(Turn::WatchPool),
        20 => number.clone().prop_map(Turn::Hear),
        20 => (number.clone(), any::<bool>()).prop_map(|(number, twice)| Turn::Say(number, twice)),
        20 => (number.clone(), life).prop_map(|(number, life)| Turn::Pod(number, life)),
        5 => (0..4_u32).prop_map(Turn::NewSandbox),
        2 => (number.clone(), 0..5_u32).prop_map(|(number, replicas)| Turn::Scale(number, replicas)),
        1 => number.clone().prop_map(Turn::Decline),
        4 => (number.clone(), number.clone(), any::<bool>())
            .prop_map(|(number, pod, clean)| Turn::Return(number, pod, clean)),
        2 => number.clone().prop_map(Turn::Delete),
        3 => edit.prop_map(Turn::Edit),
        1 => (number.clone(), number).prop_map(|(number, pod)| Turn::Steal(number, pod)),
        10 => (1..2_000_i64).prop_map(Turn::Pass),
        1 => Just(Turn::Restart),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn invariants_hold_at_every_step_and_all_comes_to_rest(
        turns in prop::collection::vec(turn(), 1..250),
    ) {
        let mut world = World::new();
        for turn in turns {
            world.step(turn);
        }
        world.calm();
        world.check_rest();
    }
}
