//! Any history.

use proptest::prelude::*;

use super::*;

#[derive(Clone, Debug)]
enum Input {
    Order(Role, i64),
    Claim(MacAddr),
    Answer(MacAddr),
    Probe(MacAddr),
    Link(bool),
    Late(u64),
    Silence,
    Refresh,
    Run(u64),
}

fn input() -> impl Strategy<Value = Input> {
    let mac = || prop_oneof![Just(PEER), Just(LOWER_PEER), Just(STRANGER)];
    let role = prop_oneof![Just(Role::Primary), Just(Role::Standby), Just(Role::Leaving)];
    prop_oneof![
        2 => (role, 1..4i64).prop_map(|(role, placement)| Input::Order(role, placement)),
        2 => mac().prop_map(Input::Claim),
        1 => mac().prop_map(Input::Answer),
        1 => mac().prop_map(Input::Probe),
        1 => any::<bool>().prop_map(Input::Link),
        1 => (0..700u64).prop_map(Input::Late),
        1 => Just(Input::Refresh),
        1 => Just(Input::Silence),
        4 => (0..3_000u64).prop_map(Input::Run),
    ]
}

proptest! {
    /// The two promises of the module's head, for any history.
    #[test]
    fn the_vip_is_a_sender_address_only_while_owned(
        vip in prop_oneof![Just(VIP), Just(VIP6)],
        inputs in proptest::collection::vec(input(), 0..60)) {
        let mut bench = Bench::of(vip, None);
        for input in inputs {
            bench.forget();
            let owned_before = bench.machine.answers();
            let mut may_own = owned_before;
            match input.clone() {
                Input::Order(role, placement) => bench.order(role, placement),
                Input::Claim(mac) => bench.claim_from(mac),
                Input::Answer(mac) => bench.answer_from(mac),
                Input::Probe(mac) => bench.probe_from(mac),
                Input::Link(up) => {
                    let link = if up { Ok(()) } else { Err(Arc::from("it has no link")) };
                    bench.machine.handle_link(bench.now, link, OWN);
                }
                Input::Late(gap) => bench.machine.handle_late_loop(bench.now, ms(gap)),
                Input::Refresh => bench.machine.handle_refresh(),
                Input::Silence => bench.silence(),
                Input::Run(time) => {
                    bench.run(ms(time));
                    may_own = true;
                }
            }
            bench.drain();
            prop_assert!(may_own || !bench.machine.answers(), "only time makes an owner: {:?}", input);
            if !owned_before && !bench.machine.answers() {
                prop_assert_eq!(bench.announcements(), 0, "{:?}", input);
            }
            prop_assert!(bench.machine.poll_timeout().is_none_or(|at| at + ms(1) > bench.now), "a timer was missed");
        }
    }
}
