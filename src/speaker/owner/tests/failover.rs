//! A standby whose owner falls silent (rule 2).

use super::*;

#[test]
fn a_standby_probes_when_the_owner_fell_silent_and_claims_if_nobody_answers() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    assert_eq!(bench.machine.watches(&bench.peers), None, "it does not know whom");
    bench.claim_from(PEER);
    let target = Target { owner: PEER, interval: Timing::default().interval, rank: 0 };
    assert_eq!(bench.machine.watches(&bench.peers), Some(target));
    bench.silence();
    bench.run(ms(149));
    assert!(!bench.machine.answers());
    // Every write of the status delivers the order anew.
    bench.order(Role::Standby, 1);
    bench.run(ms(1));
    assert!(bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::Owner]);
    assert_eq!(bench.machine.watches(&bench.peers), None);
}

#[test]
fn a_doubt_in_vain_costs_two_probes_and_no_report() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    for _ in 0..2 {
        bench.silence();
        bench.run(ms(10));
        bench.answer_from(PEER);
        bench.run(ms(10));
        bench.answer_from(PEER);
        bench.run(ms(1_000));
    }
    assert!(!bench.machine.answers() && bench.reports.is_empty());
    assert_eq!(bench.probes().len(), 4);
    assert!(bench.machine.watches(&bench.peers).is_some());
}

#[test]
fn a_standby_that_hears_another_one_claim_stays_silent_and_watches_that_one() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    bench.silence();
    bench.run(ms(100));
    bench.claim_from(LOWER_PEER);
    bench.run(ms(1_000));
    assert!(!bench.machine.answers() && bench.reports.is_empty());
    let watched = bench.machine.watches(&bench.peers).map(|target| (target.owner, target.rank));
    assert_eq!(watched, Some((LOWER_PEER, 1)), "the Primary comes before it");
}

#[test]
fn until_it_hears_an_owner_a_standby_believes_the_status() {
    let mut bench = Bench::new(None);
    let told = |mac| Order { holder: Some(mac), ..order(Role::Standby, 1) };
    bench.machine.handle_order(bench.now, told(PEER));
    assert_eq!(bench.machine.held_by(), Some(PEER));
    bench.claim_from(LOWER_PEER);
    bench.machine.handle_order(bench.now, told(PEER));
    assert_eq!(bench.machine.held_by(), Some(LOWER_PEER));
    // Behind another port it has to learn anew.
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    assert_eq!(bench.machine.watches(&bench.peers), None);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    assert_eq!(bench.machine.held_by(), Some(PEER));
}

#[test]
fn a_primary_that_left_the_address_to_a_peer_claims_it_when_that_one_is_gone() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    bench.run(ms(10));
    bench.answer_from(PEER);
    assert_eq!(bench.states().last(), Some(&ClaimState::Yielded));
    assert_eq!(bench.machine.watches(&bench.peers).map(|target| (target.owner, target.rank)), Some((PEER, 0)));
    bench.silence();
    bench.run(ms(200));
    assert!(bench.machine.answers(), "nobody else does");
}

#[test]
fn a_silent_node_that_is_leaving_or_has_no_link_watches_nobody() {
    let mut bench = Bench::owner();
    bench.claim_from(PEER);
    bench.order(Role::Leaving, 2);
    assert_eq!(bench.machine.watches(&bench.peers), None);
    bench.forget();
    bench.silence();
    bench.run(10 * RECHECK_SILENT);
    assert!(bench.sent.is_empty());
}

#[test]
fn an_answer_for_the_dead_from_the_switch_does_not_count() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    bench.run(ms(400));
    assert!(bench.machine.answers(), "the unicast requests went unanswered");
    assert_eq!(bench.probes().iter().filter(|(_, to)| *to == Some(PEER)).count(), 2);
}

#[test]
fn an_owner_behind_a_host_that_the_switch_answers_for_is_found_all_the_same() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(100));
    // To the second probe, both answer.
    bench.answer_from(LOWER_PEER);
    bench.answer_from(PEER);
    for _ in 0..40 {
        bench.run(ms(10));
        if bench.probes().last().is_some_and(|(_, to)| to.is_none()) {
            bench.answer_from(LOWER_PEER);
            bench.answer_from(PEER);
        } else if bench.probes().last().is_some_and(|(_, to)| *to == Some(PEER)) {
            bench.answer_from(PEER);
        }
    }
    assert!(!bench.machine.answers());
    assert_eq!(bench.machine.held_by(), Some(PEER));
}

#[test]
fn answers_for_the_dead_from_however_many_hosts_hold_nobody_up() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    let ghosts: Vec<MacAddr> = (0..100).map(|host| MacAddr(2, 0, 0, 0, 0xee, host)).collect();
    for _ in 0..500 {
        bench.run(ms(10));
        if bench.probes().last().is_some_and(|(_, to)| to.is_none()) {
            for ghost in &ghosts {
                bench.answer_from(*ghost);
            }
        }
    }
    assert!(bench.machine.answers(), "none of them answered when asked alone");
}
