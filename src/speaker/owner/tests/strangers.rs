//! Hosts that are none of ours (rules 1 and 3).

use super::*;

#[test]
fn a_foreign_host_that_answers_blocks_the_address_after_its_mac_stayed_unknown() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(STRANGER);
    bench.run(ms(10));
    bench.answer_from(STRANGER);
    assert_eq!(bench.reports.last().unwrap().conflict_mac, Some(STRANGER), "said at once");
    bench.run(ms(5_000));
    let last = bench.reports.last().unwrap();
    assert_eq!((last.state, last.conflict_mac), (ClaimState::Blocked, Some(STRANGER)));
    bench.run(RETRY_BLOCKED - ms(6_000));
    bench.forget();
    // Asked again, slowly; while it answers nothing new is reported.
    bench.run(ms(6_010));
    assert_eq!(bench.probes().len(), 1);
    bench.answer_from(STRANGER);
    bench.run(ms(1));
    bench.answer_from(STRANGER);
    bench.run(ms(1_000));
    assert!(bench.reports.is_empty(), "{:?}", bench.reports);
    // It is gone.
    bench.run(RETRY_BLOCKED + ms(150));
    assert!(bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::Owner]);
}

#[test]
fn an_unknown_mac_that_becomes_a_speakers_does_not_block() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(STRANGER);
    bench.run(ms(1));
    bench.answer_from(STRANGER);
    bench.run(ms(2_000));
    bench.peers = peers(&[("own", OWN), ("new", STRANGER)]);
    bench.machine.handle_speakers(bench.now, &bench.peers);
    bench.run(ms(150));
    assert!(bench.machine.answers());
}

#[test]
fn a_foreign_host_that_probes_at_the_same_time_blocks() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.probe_from(STRANGER);
    bench.run(ms(5_100));
    assert_eq!(bench.states().last(), Some(&ClaimState::Blocked));
}

#[test]
fn an_owner_defends_against_a_foreign_host_once_in_ten_seconds_and_says_whose_mac_it_is() {
    let mut bench = Bench::owner();
    bench.run(ms(10_000));
    bench.forget();
    for _ in 0..15 {
        bench.hear(Operation::Request, true, STRANGER, VIP, CLIENT_IP);
        bench.run(ms(1_000));
        assert!(bench.machine.answers());
    }
    assert_eq!(bench.announcements(), 2);
    let conflicts: Vec<_> = bench.reports.iter().map(|report| (report.state, report.conflict_mac)).collect();
    assert_eq!(conflicts, [(ClaimState::Owner, Some(STRANGER))]);
    // When the rival is silent, every cache is put right once more.
    bench.forget();
    bench.run(RIVAL_SILENT);
    assert_eq!(bench.announcements(), 2);
    assert_eq!(bench.reports.iter().map(|report| report.conflict_mac).collect::<Vec<_>>(), [None]);
}

#[test]
fn an_owner_that_took_a_new_speakers_claim_for_a_strangers_asks_who_holds_the_address_now() {
    let unknown = MacAddr(2, 0, 0, 0, 1, 4);
    let becomes_known = || {
        let mut bench = Bench::owner();
        bench.run(ms(10_000));
        bench.claim_from(unknown);
        assert!(bench.machine.answers(), "a stranger does not get it");
        bench.peers = peers(&[("own", OWN), ("peer", PEER), ("new", unknown)]);
        bench.machine.handle_speakers(bench.now, &bench.peers);
        bench.drain();
        assert!(!bench.machine.answers(), "another speaker's claim was heard");
        bench.run(ms(10));
        bench
    };
    let mut bench = becomes_known();
    bench.answer_from(unknown);
    bench.run(ms(10));
    bench.answer_from(unknown);
    bench.run(ms(1_000));
    assert_eq!(bench.states().last(), Some(&ClaimState::Yielded));
    assert_eq!(bench.machine.held_by(), Some(unknown));
    // It had yielded to our defence: nobody else answers.
    let mut bench = becomes_known();
    bench.run(ms(1_000));
    assert!(bench.machine.answers());
}
