//! Other speakers that claim, probe or answer for the address (rules 3, 4, 6 and 9).

use super::*;

#[test]
fn words_of_the_old_owner_that_were_under_way_are_answered_by_announcing_again() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(150));
    bench.run(ms(100));
    bench.forget();
    bench.claim_from(PEER);
    assert!(bench.machine.answers());
    bench.run(ms(1));
    assert_eq!(bench.announcements(), 2);
    // Later than 300 ms it is a real claim.
    bench.run(ms(250));
    bench.claim_from(PEER);
    assert!(!bench.machine.answers());
}

#[test]
fn an_owner_that_is_not_named_any_more_yields_however_soon_after_its_claim() {
    for role in [Role::Leaving, Role::Standby] {
        let mut bench = Bench::new(None);
        bench.order(Role::Primary, 1);
        bench.run(ms(200));
        bench.order(role, 2);
        bench.claim_from(PEER);
        assert!(!bench.machine.answers(), "{role:?}");
    }
}

#[test]
fn claims_that_cross_are_answered_at_once_so_that_nobody_believes_the_loser() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(150));
    assert_eq!(bench.announcements(), 2);
    bench.forget();
    // Both forms of the other's claim, sent before it heard ours.
    bench.run(ms(5));
    bench.claim_from(PEER);
    bench.claim_from(PEER);
    assert!(bench.machine.answers());
    bench.run(ms(1));
    assert_eq!(bench.announcements(), 2, "our claim of 5 ms ago was before theirs; both of their forms are one claim");
    bench.forget();
    // And the one by which a tie is won.
    let mut bench = Bench::owner();
    bench.machine.handle_late_loop(bench.now, ms(600));
    bench.run(ms(150));
    bench.forget();
    bench.claim_from(PEER);
    bench.run(ms(1));
    assert!(bench.machine.answers());
    assert_eq!(bench.announcements(), 2);
}

#[test]
fn an_owner_yields_to_a_claim_at_once_and_stays_silent() {
    let mut bench = Bench::owner();
    bench.claim_from(PEER);
    assert!(!bench.machine.answers());
    bench.run(RECHECK_SILENT - ms(1));
    assert_eq!(bench.announcements(), 0, "the rest of the burst is not sent");
    assert_eq!(bench.states(), [ClaimState::Yielded]);
    assert_eq!(bench.machine.held_by(), Some(PEER));
}

#[test]
fn a_unicast_answer_is_no_claim() {
    let mut bench = Bench::owner();
    bench.answer_from(PEER);
    assert!(bench.machine.answers());
}

#[test]
fn a_leaving_owner_answers_until_it_hears_the_claim() {
    let mut bench = Bench::owner();
    bench.order(Role::Leaving, 2);
    bench.run(ms(5_000));
    assert!(bench.machine.answers());
    bench.claim_from(PEER);
    assert!(!bench.machine.answers());
}

#[test]
fn an_owner_that_is_probed_by_a_speaker_announces_anew_at_most_once_a_second() {
    let mut bench = Bench::owner();
    bench.run(ms(10_000));
    bench.forget();
    bench.probe_from(PEER);
    bench.run(ms(75));
    bench.probe_from(PEER);
    bench.run(ms(10));
    assert_eq!(bench.announcements(), 2);
    bench.forget();
    bench.run(ms(20_000));
    bench.forget();
    bench.probe_from(STRANGER);
    bench.run(ms(10));
    assert_eq!(bench.announcements(), 0, "a stranger's probe is answered, not announced against");
}

#[test]
fn of_two_owners_that_claimed_by_themselves_the_better_one_stays() {
    let alone = |rival, role| {
        let mut bench = Bench::owner();
        bench.machine.handle_late_loop(bench.now, ms(600));
        bench.order(role, 1);
        bench.run(ms(150));
        bench.claim_from(rival);
        bench.machine.answers()
    };
    assert!(alone(PEER, Role::Primary), "it comes first in the ranking");
    assert!(alone(LOWER_PEER, Role::Primary), "the rank goes before the MAC address");
}

#[test]
fn after_two_rounds_of_a_tie_the_lower_mac_stays() {
    for (rival, stays) in [(LOWER_PEER, false), (PEER, true)] {
        let mut bench = Bench::owner();
        bench.machine.handle_late_loop(bench.now, ms(600));
        bench.run(ms(150));
        for _ in 0..TIE_ROUNDS {
            bench.claim_from(rival);
            bench.run(ms(100));
            assert!(bench.machine.answers());
        }
        bench.claim_from(rival);
        assert_eq!(bench.machine.answers(), stays, "{rival}");
    }
}

#[test]
fn the_rounds_of_a_tie_long_ago_do_not_count() {
    let mut bench = Bench::owner();
    bench.machine.handle_late_loop(bench.now, ms(600));
    bench.run(ms(150));
    for _ in 0..TIE_ROUNDS {
        bench.claim_from(LOWER_PEER);
        bench.run(ms(100));
    }
    bench.run(ms(60_000));
    bench.answer_from(LOWER_PEER);
    bench.run(ms(10));
    bench.claim_from(LOWER_PEER);
    assert!(bench.machine.answers(), "the other one yields, since it ranks lower: if both did, nobody would answer");
}

#[test]
fn an_owner_looks_for_second_owners_among_those_who_have_a_part_and_who_had_it_before() {
    let bench = Bench::owner();
    assert_eq!(bench.machine.rivals(&bench.peers), [LOWER_PEER, PEER]);
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    assert!(bench.machine.rivals(&bench.peers).is_empty(), "it is no owner");
    bench.claim_from(STRANGER);
    bench.machine.handle_order(bench.now, Order { holder: Some(STRANGER), ..order(Role::Standby, 1) });
    bench.silence();
    bench.run(ms(150));
    assert_eq!(bench.machine.rivals(&bench.peers), [LOWER_PEER, PEER, STRANGER]);
}

#[test]
fn an_owner_announces_against_a_second_one_unless_the_api_names_that_one() {
    let mut bench = Bench::owner();
    bench.run(ms(20_000));
    bench.forget();
    bench.answer_from(PEER);
    bench.run(ms(1));
    assert!(bench.machine.answers());
    assert_eq!(bench.announcements(), 2);
    // A standby that took over while the Primary was paused.
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    bench.silence();
    bench.run(ms(150));
    bench.answer_from(PEER);
    assert!(bench.machine.answers(), "it may have been under way");
    bench.run(ms(5_000));
    bench.forget();
    bench.answer_from(LOWER_PEER);
    assert!(bench.machine.answers(), "neither is named, and this one ranks first");
    bench.run(ms(5_000));
    bench.forget();
    bench.answer_from(PEER);
    assert!(!bench.machine.answers());
    assert_eq!(
        bench.sent.iter().map(|(_, message)| *message).collect::<Vec<_>>(),
        [Message::Probe { vip: VIP, to: None }]
    );
    assert_eq!(bench.states(), [ClaimState::Yielded]);
    assert_eq!(bench.machine.held_by(), Some(PEER));
}

/// The second owner, which has just heard us, may have announced against us as well: of the two the better one stays.
#[test]
fn announcements_of_two_owners_against_each_other_are_a_tie() {
    let mut bench = Bench::owner();
    bench.run(ms(20_000));
    bench.answer_from(PEER);
    bench.run(ms(5));
    bench.claim_from(PEER);
    assert!(bench.machine.answers(), "it comes first in the ranking");
    bench.run(ms(1_100));
    bench.claim_from(PEER);
    assert!(!bench.machine.answers(), "later than a second it is a claim like any other");
}

#[test]
fn what_answers_on_after_three_announcements_is_reported_and_looked_at_once_a_minute() {
    let mut bench = Bench::owner();
    bench.run(ms(20_000));
    bench.forget();
    for _ in 0..3 {
        bench.answer_from(PEER);
        bench.run(ms(250));
    }
    assert_eq!(bench.announcements(), 12, "three bursts, each with one repeat before the next");
    assert!(bench.reports.is_empty());
    bench.answer_from(PEER);
    let last = bench.reports.last().unwrap();
    assert_eq!((last.state, last.conflict_mac), (ClaimState::Owner, Some(PEER)));
    assert!(last.reason.contains("IPVS"), "{}", last.reason);
    assert_eq!(bench.machine.rivals(&bench.peers), [LOWER_PEER]);
    for _ in 0..3 {
        bench.run(ms(20_000));
        bench.forget();
        bench.run(ms(40_500));
        assert_eq!(bench.probes().len(), 1, "once a minute");
        bench.answer_from(PEER);
        bench.run(ms(100));
        assert!(bench.reports.is_empty() && bench.announcements() == 0);
    }
    bench.forget();
    bench.run(ms(65_000));
    assert_eq!(bench.reports.iter().map(|report| report.conflict_mac).collect::<Vec<_>>(), [None]);
    assert_eq!(bench.machine.rivals(&bench.peers), [LOWER_PEER, PEER]);
}
