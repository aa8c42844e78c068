//! What a machine does after a restart, a late loop, or without its link (rules 5, 7, 8 and 11).

use super::*;

const NEW: MacAddr = MacAddr(2, 0, 0, 0, 1, 0xee);

#[test]
fn a_restarted_primary_rechecks_and_leaves_the_address_to_a_peer_that_answers() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    bench.run(ms(1));
    assert_eq!(bench.probes().last(), Some(&(10, Some(PEER))), "a broadcast answer alone does not count");
    bench.answer_from(PEER);
    bench.run(RECHECK_SILENT - ms(1));
    assert!(!bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::Probing, ClaimState::Yielded]);
}

#[test]
fn a_restarted_primary_claims_again_when_nobody_answers() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(150));
    assert!(bench.machine.answers());
}

#[test]
fn a_restarted_node_that_is_standby_now_claims_nothing() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Standby, 2);
    bench.run(ms(60_000));
    assert!(bench.sent.is_empty());
}

#[test]
fn a_late_loop_rechecks_only_beyond_the_fence() {
    let mut bench = Bench::owner();
    bench.machine.handle_late_loop(bench.now, ms(499));
    assert!(bench.machine.answers());
    bench.machine.handle_late_loop(bench.now, ms(500));
    assert!(!bench.machine.answers());
    bench.run(ms(150));
    assert!(bench.machine.answers(), "nobody else took over");
}

#[test]
fn who_was_the_owner_when_it_restarted_or_lost_its_link_rechecks_whatever_its_role() {
    let mut bench = Bench::new(None);
    let last_claim = LastClaim { epoch: epoch(1), owned: true };
    bench.machine = Owner::new(VIP, OWN, Some(last_claim), Ok(()));
    bench.order(Role::Standby, 1);
    bench.run(ms(150));
    assert!(bench.machine.answers(), "it had taken over, and the controller does not know yet");
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    bench.run(ms(150));
    assert!(bench.machine.answers());
    bench.run(ms(2_000));
    bench.claim_from(PEER);
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    bench.run(ms(150));
    assert!(!bench.machine.answers(), "it had yielded");
}

#[test]
fn a_lost_link_gives_up_and_a_link_that_is_back_is_probed_first() {
    let mut bench = Bench::owner();
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    bench.drain();
    assert!(!bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::LinkDown]);
    bench.run(ms(1_000));
    assert_eq!(bench.announcements(), 0);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    bench.run(ms(150));
    assert!(bench.machine.answers());
    assert_eq!(bench.probes().len(), 2);
}

#[test]
fn a_new_mac_is_probed_and_announced() {
    let mut bench = Bench::owner();
    bench.machine.handle_link(bench.now, Ok(()), NEW);
    assert!(!bench.machine.answers());
    bench.run(ms(150));
    assert!(bench.machine.answers() && bench.announcements() == 2);
    bench.machine.handle_link(bench.now, Ok(()), NEW);
    assert!(bench.machine.answers(), "that is nothing new");
}

/// What was asked before was asked under the other MAC address, and the answers go to that one.
#[test]
fn a_standby_with_a_new_mac_asks_all_over_again() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    bench.machine.handle_silence(bench.now);
    bench.run(ms(140));
    assert_eq!(bench.probes(), [(0, None), (75, None)]);
    bench.machine.handle_link(bench.now, Ok(()), NEW);
    bench.run(ms(140));
    assert!(!bench.machine.answers(), "nobody had the time to answer");
    assert_eq!(bench.probes(), [(0, None), (75, None), (140, None), (215, None)]);
    bench.run(ms(10));
    assert!(bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::Owner], "of a doubt nothing was said");
}

/// A node that takes the place of another one may have its MAC address, and the API may say so late.
#[test]
fn who_gets_the_mac_of_a_host_that_answered_does_not_ask_itself() {
    for (host, times) in [(PEER, 1), (STRANGER, 1), (STRANGER, 2)] {
        let mut bench = Bench::new(None);
        bench.order(Role::Standby, 1);
        bench.claim_from(PEER);
        bench.machine.handle_silence(bench.now);
        for _ in 0..times {
            bench.run(ms(10));
            bench.answer_from(host);
        }
        bench.machine.handle_link(bench.now, Ok(()), host);
        bench.forget();
        bench.run(ms(150));
        assert!(bench.probes().iter().all(|(_, to)| to.is_none()), "{:?}", bench.probes());
        assert!(bench.machine.answers(), "it waits for itself");
        assert!(!bench.machine.rivals(&bench.peers).contains(&host));
    }
}

#[test]
fn who_was_blocked_by_a_host_whose_mac_it_has_now_is_blocked_no_longer() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    bench.machine.handle_silence(bench.now);
    for _ in 0..2 {
        bench.run(ms(10));
        bench.answer_from(STRANGER);
    }
    bench.run(ms(6_000));
    assert_eq!(bench.states().last(), Some(&ClaimState::Blocked));
    bench.machine.handle_link(bench.now, Ok(()), STRANGER);
    bench.run(ms(150));
    assert!(bench.machine.answers());
}

#[test]
fn who_gets_the_mac_of_the_owner_does_not_watch_itself() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    bench.machine.handle_link(bench.now, Ok(()), PEER);
    assert_eq!(bench.machine.watches(&bench.peers), None);
    bench.claim_from(PEER);
    bench.run(ms(150));
    assert!(bench.machine.answers(), "the owner is gone, and its own frames do not count");
}

/// The placement was claimed for before: who answers now took over meanwhile.
#[test]
fn a_link_or_mac_that_is_new_takes_nothing_from_who_took_over_meanwhile() {
    for new_mac in [OWN, NEW] {
        let mut bench = Bench::owner();
        bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
        bench.machine.handle_link(bench.now, Ok(()), new_mac);
        bench.run(ms(10));
        bench.answer_from(PEER);
        bench.run(ms(10));
        bench.answer_from(PEER);
        bench.run(ms(1_000));
        assert!(!bench.machine.answers());
        assert_eq!(bench.machine.held_by(), Some(PEER));
    }
}

#[test]
fn a_refresh_is_one_announcement_of_an_owner() {
    let mut bench = Bench::owner();
    bench.run(ms(10_000));
    bench.forget();
    bench.machine.handle_refresh();
    bench.drain();
    assert_eq!(bench.announcements(), 1);
    bench.claim_from(PEER);
    bench.machine.handle_refresh();
    bench.drain();
    assert_eq!(bench.announcements(), 1);
}

#[test]
fn a_link_that_changes_before_the_first_order_starts_nothing() {
    let mut bench = Bench::new(None);
    bench.machine = Owner::new(VIP, OWN, Some(LastClaim { epoch: epoch(1), owned: true }), Ok(()));
    bench.machine.handle_link(bench.now, Ok(()), NEW);
    bench.drain();
    assert_eq!(bench.machine.poll_timeout(), None, "without an order there is nothing to claim for");
    bench.order(Role::Standby, 1);
    bench.run(ms(200));
    assert!(bench.machine.answers(), "it was the owner, and nobody else answers");
}

#[test]
fn who_stood_still_while_it_asked_asks_anew_whatever_for() {
    for cause in [Cause::Named, Cause::Dead, Cause::Recheck] {
        let mut bench = Bench::new(Some(if cause == Cause::Recheck { 1 } else { 0 }));
        match cause {
            Cause::Named | Cause::Recheck => bench.order(Role::Primary, 1),
            Cause::Dead => {
                bench.order(Role::Standby, 1);
                bench.claim_from(PEER);
                bench.silence();
            }
        }
        bench.run(ms(149));
        assert_eq!(bench.probes().len(), 2);
        // What was said meanwhile has not been read yet.
        bench.now += ms(12_000);
        bench.machine.handle_late_loop(bench.now, ms(12_000));
        bench.run(ms(149));
        assert!(!bench.machine.answers(), "{cause:?}: nobody was asked since");
        assert_eq!(bench.probes().len(), 4);
        bench.run(ms(1));
        assert!(bench.machine.answers());
    }
}

#[test]
fn a_probe_that_was_not_sent_is_sent_again_whatever_it_was_for() {
    for cause in [Cause::Dead, Cause::Recheck] {
        let mut bench = Bench::owner();
        bench.order(Role::Standby, 2);
        match cause {
            Cause::Dead => {
                bench.claim_from(PEER);
                bench.silence();
            }
            _ => bench.machine.handle_late_loop(bench.now, ms(500)),
        }
        bench.run(ms(0));
        bench.machine.handle_unsent(bench.now);
        bench.forget();
        bench.run(TRY_AGAIN + ms(149));
        assert_eq!(bench.probes().len(), 2);
        assert!(!bench.machine.answers());
        bench.run(ms(1));
        assert!(bench.machine.answers(), "{cause:?}: nobody holds the address");
    }
}

#[test]
fn a_question_to_one_host_that_was_not_sent_says_nothing_about_that_host() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    for _ in 0..10 {
        bench.run(ms(75));
        bench.machine.handle_unsent(bench.now);
    }
    assert!(!bench.machine.answers());
}

#[test]
fn an_owner_is_not_disturbed_by_a_question_that_was_not_sent() {
    let mut bench = Bench::owner();
    bench.machine.handle_unsent(bench.now);
    assert!(bench.machine.answers());
    bench.claim_from(PEER);
    bench.machine.handle_unsent(bench.now);
    assert_eq!(bench.machine.held_by(), Some(PEER));
}

#[test]
fn a_standby_that_had_taken_over_and_was_rechecking_when_it_lost_its_link_rechecks_again() {
    let mut bench = Bench::owner();
    bench.order(Role::Standby, 2);
    bench.machine.handle_late_loop(bench.now, ms(500));
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    bench.run(ms(150));
    assert!(bench.machine.answers(), "nobody else does, and nobody else knows");
}

#[test]
fn a_standby_whose_link_is_back_does_not_go_on_saying_that_it_is_lost() {
    let mut bench = Bench::new(Some(0));
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    bench.silence();
    bench.run(ms(0));
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    bench.drain();
    assert_eq!(bench.states().last(), Some(&ClaimState::LinkDown));
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    bench.drain();
    assert_eq!(bench.states().last(), Some(&ClaimState::Yielded));
    assert!(!bench.machine.answers());
}
