//! Histories that were wrong once.

use super::{facts::*, history::*, *};

fn holds(history: &[Op]) {
    assert_eq!(verify(history), Ok(()));
}

#[test]
fn what_a_waiting_service_says_follows_what_others_take() {
    let both = Op::Edit(2, Edit::Families(Families::RequireFourSix));
    let asks = Op::Service(2, vec![Edit::Ask(Ask::Four(Via::Ours, 1))]);
    // The IPv4 address that it asks for is free first, and then another one's.
    holds(&[Op::Service(4, vec![]), asks, both, Op::Flow, Op::Service(0, vec![])]);
}

#[test]
fn a_service_that_lacks_one_family_says_so_when_the_other_is_used_up_as_well() {
    let one = Addrs { fours: 0b10, ..Addrs::default() };
    let both = Op::Service(1, vec![Edit::Families(Families::RequireFourSix)]);
    holds(&[Op::Service(0, vec![]), both, Op::Flow, Op::Rewrite(0, Rewrite::Addresses(one))]);
}

#[test]
fn an_address_that_was_decided_and_never_written_does_not_outlive_its_pool() {
    let refused = [Op::Service(0, vec![]), Op::Restart, Op::Poll(1), Op::Carry(1, Fate::Refused)];
    for change in [Op::RemovePool(0), Op::Rewrite(0, Rewrite::Auto(false))] {
        holds(&[&refused[..], &[change]].concat());
    }
}

#[test]
fn a_request_that_means_nothing_keeps_no_address_that_was_never_written() {
    let decided = [Op::Service(0, vec![]), Op::Service(1, vec![]), Op::Restart, Op::Poll(1)];
    holds(&[&decided[..], &[Op::Edit(1, Edit::Ask(Ask::Malformed))]].concat());
}

#[test]
fn what_no_pool_holds_is_not_put_into_quarantine() {
    let other = Addrs { fours: 0b10, ..Addrs::default() };
    let foreign = [Op::Pool(1, vec![]), Op::Foreign(0, true), Op::Service(0, vec![]), Op::Flow];
    holds(&[&foreign[..], &[Op::Rewrite(0, Rewrite::Addresses(other))]].concat());
}

#[test]
fn a_node_without_ipv6_announces_the_other_address_only() {
    let off = [0, 1, 2].map(|node| Op::Node(node, NodeEvent::Nics(Nics::NoIpv6)));
    let sixes = Rewrite::Addresses(Addrs { fours: 0b1, sixes: 0b1, ..Addrs::default() });
    let both = Op::Service(0, vec![Edit::Families(Families::RequireFourSix)]);
    for some in [&off[..1], &off] {
        holds(&[some, &[Op::Rewrite(0, sixes), both.clone(), Op::Flow]].concat());
    }
}
