//! Table tests of the choice of a node.

use std::{collections::BTreeMap, sync::Arc};

use super::*;
use crate::controller::eligibility::{Eligible, LocalEndpoints, Rejected, Rejection};

#[derive(Clone, Default)]
struct Nodes(Eligible, Option<LocalEndpoints>);

impl Nodes {
    fn candidates(&self) -> Candidates {
        Candidates::new(Arc::new(self.0.clone()), self.1.clone())
    }
}

fn fit(nodes: &[&str]) -> Nodes {
    let candidate = |node: &&str| ((*node).to_owned(), Candidate::plain(node));
    Nodes(Eligible { fit: nodes.iter().map(candidate).collect(), rejected: BTreeMap::new() }, None)
}

fn but(mut nodes: Nodes, node: &str, reason: Rejection) -> Nodes {
    let is_excluded = matches!(reason, Rejection::Excluded | Rejection::NotSelected);
    let is_alive = !matches!(reason, Rejection::NoSpeaker | Rejection::SpeakerDead | Rejection::OutOfService);
    nodes.0.rejected.insert(node.to_owned(), Rejected { reason, is_excluded, is_alive });
    nodes
}

fn decided(placement: i64, entries: &[(&str, Role)]) -> Decision {
    let entry = |(node, role): &(&str, Role)| Assignment {
        node: (*node).to_owned(),
        role: *role,
        interface: "eth0".to_owned(),
    };
    Decision { assignments: entries.iter().map(entry).collect(), placement }
}

fn claim(node: &str, placement: i64, arrival: u64) -> OwnerClaim {
    OwnerClaim { node: node.to_owned(), placement, arrival }
}

/// What is asked besides, as it is if nothing special is wanted.
#[derive(Default)]
struct Besides {
    loads: BTreeMap<&'static str, usize>,
    partners: BTreeSet<String>,
    together: Vec<String>,
    wish: Wish<'static>,
    hold: bool,
    highest: i64,
}

fn assign_with(besides: &Besides, current: &Decision, claims: &[OwnerClaim], nodes: &Nodes) -> Decision {
    super::assign(&Case {
        current,
        claims,
        highest: claims.iter().map(|claim| claim.placement).max().unwrap_or(0).max(besides.highest),
        candidates: &nodes.candidates(),
        load: &|node| besides.loads.get(node).copied().unwrap_or(0),
        partners: &|_| besides.partners.clone(),
        together: &besides.together,
        wish: besides.wish,
        hold: besides.hold,
        is_new: current.assignments.is_empty(),
    })
}

fn assign(current: &Decision, claims: &[OwnerClaim], nodes: &Nodes) -> Decision {
    assign_with(&Besides::default(), current, claims, nodes)
}

fn nodes(names: &[&str]) -> Vec<String> {
    names.iter().map(|node| (*node).to_owned()).collect()
}

use Role::{Leaving, Primary, Standby};

#[test]
fn the_first_choice_has_two_standbys() {
    let decision = assign(&Decision::default(), &[], &fit(&["a", "b", "c", "d"]));
    assert_eq!(decision, decided(1, &[("a", Primary), ("b", Standby), ("c", Standby)]));
}

#[test]
fn the_owner_stays_while_it_can_and_a_returning_node_takes_nothing_back() {
    let current = decided(4, &[("c", Primary), ("b", Standby)]);
    let decision = assign(&current, &[claim("c", 4, 1)], &fit(&["a", "b", "c"]));
    assert_eq!(decision, decided(4, &[("c", Primary), ("b", Standby), ("a", Standby)]));
}

#[test]
fn a_dead_primary_is_replaced_by_its_first_standby_at_once() {
    let current = decided(1, &[("a", Primary), ("c", Standby), ("b", Standby)]);
    let candidates = but(fit(&["b", "c"]), "a", Rejection::SpeakerDead);
    let decision = assign(&current, &[claim("a", 1, 1)], &candidates);
    assert_eq!(decision, decided(2, &[("c", Primary), ("b", Standby)]));
}

#[test]
fn a_living_owner_leaves_only_after_the_new_one_has_claimed() {
    let current = decided(1, &[("a", Primary), ("b", Standby)]);
    let candidates = but(fit(&["b", "c"]), "a", Rejection::Draining);
    let claims = [claim("a", 1, 1)];
    let moving = assign(&current, &claims, &candidates);
    assert_eq!(moving, decided(2, &[("b", Primary), ("c", Standby), ("a", Leaving)]));
    assert_eq!(assign(&moving, &claims, &candidates), moving);
    let claims = [claim("a", 1, 1), claim("b", 2, 2)];
    let moved = assign(&moving, &claims, &candidates);
    assert_eq!(moved, decided(2, &[("b", Primary), ("c", Standby)]));
}

#[test]
fn when_the_target_of_a_move_dies_another_is_named_and_the_old_owner_goes_on() {
    let moving = decided(2, &[("b", Primary), ("c", Standby), ("a", Leaving)]);
    let candidates = but(but(fit(&["c", "d"]), "a", Rejection::Draining), "b", Rejection::SpeakerDead);
    let decision = assign(&moving, &[claim("a", 1, 1)], &candidates);
    assert_eq!(decision, decided(3, &[("c", Primary), ("d", Standby), ("a", Leaving)]));
}

#[test]
fn a_standby_that_took_over_becomes_primary_under_the_same_placement() {
    let current = decided(3, &[("a", Primary), ("b", Standby)]);
    let claims = [claim("a", 3, 1), claim("b", 3, 2)];
    let decision = assign(&current, &claims, &fit(&["a", "b"]));
    assert_eq!(decision, decided(3, &[("b", Primary), ("a", Standby)]));
    // Its claim speaks of an earlier placement: no fact to adopt.
    let decision = assign(&current, &[claim("b", 2, 9)], &fit(&["a", "b"]));
    assert_eq!(decision.primary(), Some("a"));
}

#[test]
fn of_two_claims_read_at_once_the_primarys_counts() {
    let current = decided(3, &[("b", Primary), ("a", Standby)]);
    let decision = assign(&current, &[claim("a", 3, 1), claim("b", 3, 1)], &fit(&["a", "b"]));
    assert_eq!(decision.primary(), Some("b"));
}

#[test]
fn without_candidates_everything_stays_except_what_the_administrator_excluded() {
    let current = decided(5, &[("a", Primary), ("b", Standby)]);
    let dark = but(but(Nodes::default(), "a", Rejection::SpeakerDead), "b", Rejection::SpeakerDead);
    assert_eq!(assign(&current, &[], &dark), current);
    let draining = but(but(Nodes::default(), "a", Rejection::Draining), "b", Rejection::NotReady);
    assert_eq!(assign(&current, &[claim("a", 5, 1)], &draining), current);
    let excluded = but(but(Nodes::default(), "a", Rejection::Excluded), "b", Rejection::SpeakerDead);
    assert_eq!(assign(&current, &[claim("a", 5, 1)], &excluded), decided(5, &[("b", Standby)]));
}

#[test]
fn placements_go_on_above_every_claim() {
    let current = decided(2, &[("a", Primary)]);
    let candidates = but(fit(&["b"]), "a", Rejection::SpeakerDead);
    assert_eq!(assign(&current, &[claim("a", 41, 1)], &candidates).placement, 42);
    let besides = Besides { highest: 50, ..Besides::default() };
    assert_eq!(assign_with(&besides, &current, &[claim("a", 41, 1)], &candidates).placement, 51);
}

#[test]
fn the_standbys_of_one_primary_are_few_nodes() {
    let besides = Besides { partners: nodes(&["d", "e", "f"]).into_iter().collect(), ..Besides::default() };
    let decision = assign_with(&besides, &Decision::default(), &[], &fit(&["a", "b", "c", "d", "e", "f"]));
    assert_eq!(decision, decided(1, &[("a", Primary), ("d", Standby), ("e", Standby)]));
    // Partners that cannot stand by use up no place.
    let decision = assign_with(&besides, &Decision::default(), &[], &fit(&["a", "b", "c"]));
    assert_eq!(decision, decided(1, &[("a", Primary), ("b", Standby), ("c", Standby)]));
}

#[test]
fn candidates_come_by_preference_then_company_then_load_then_name() {
    let mut candidates = fit(&["a", "b", "c", "d", "e"]);
    candidates.0.fit.get_mut("e").unwrap().weight = 50;
    let loads = BTreeMap::from([("a", 3), ("b", 2), ("c", 2), ("d", 9), ("e", 9)]);
    let mut besides = Besides { loads, ..Besides::default() };
    let order = |besides: &Besides| {
        let decision = assign_with(besides, &Decision::default(), &[], &candidates);
        decision.assignments.into_iter().map(|entry| entry.node).collect::<Vec<_>>()
    };
    assert_eq!(order(&besides), ["e", "b", "c"]);
    // The other address of the Service is on d, and on a if d cannot go on: together, unless the pool prefers another node.
    besides.together = nodes(&["d", "a"]);
    assert_eq!(order(&besides), ["e", "d", "a"]);
}

#[test]
fn two_addresses_of_a_service_move_to_one_node_but_not_for_the_sake_of_it() {
    let besides = Besides { together: nodes(&["c", "a"]), ..Besides::default() };
    let current = decided(1, &[("a", Primary), ("b", Standby), ("c", Standby)]);
    let sticky = assign_with(&besides, &current, &[claim("a", 1, 1)], &fit(&["a", "b", "c"]));
    assert_eq!(sticky, current);
    let without = but(fit(&["b", "c"]), "a", Rejection::SpeakerDead);
    let moved = assign_with(&besides, &current, &[claim("a", 1, 1)], &without);
    assert_eq!(moved, decided(2, &[("c", Primary), ("b", Standby)]));
}

#[test]
fn a_node_that_leaves_and_may_stay_after_all_goes_before_a_cold_standby() {
    let moving = decided(2, &[("b", Primary), ("c", Standby), ("a", Leaving)]);
    let candidates = but(fit(&["a", "c", "d"]), "b", Rejection::SpeakerDead);
    let decision = assign(&moving, &[claim("a", 1, 1)], &candidates);
    assert_eq!(decision, decided(3, &[("a", Primary), ("c", Standby), ("d", Standby)]));
    // It says nothing of the address any more: it is no better than others.
    let decision = assign(&moving, &[], &candidates);
    assert_eq!(decision.primary(), Some("c"));
}

#[test]
fn a_move_that_has_to_wait_changes_nothing_but_the_standbys() {
    let current = decided(1, &[("a", Primary), ("b", Standby), ("c", Standby)]);
    let candidates = but(but(fit(&["c", "d"]), "a", Rejection::Draining), "b", Rejection::SpeakerDead);
    let besides = Besides { hold: true, ..Besides::default() };
    let decision = assign_with(&besides, &current, &[claim("a", 1, 1)], &candidates);
    assert_eq!(decision, decided(1, &[("a", Primary), ("c", Standby), ("d", Standby)]));
}

#[test]
fn a_silent_primary_is_asked_again_under_a_new_placement() {
    let moving = decided(2, &[("b", Primary), ("c", Standby), ("a", Leaving)]);
    let candidates = but(fit(&["b", "c"]), "a", Rejection::Draining);
    let again = Besides { wish: Wish::AskAgain, ..Besides::default() };
    let decision = assign_with(&again, &moving, &[claim("a", 1, 1)], &candidates);
    assert_eq!(decision, decided(3, &[("b", Primary), ("c", Standby), ("a", Leaving)]));
    let another = Besides { wish: Wish::AskAnother, ..Besides::default() };
    let decision = assign_with(&another, &decision, &[claim("a", 1, 1)], &candidates);
    assert_eq!(decision, decided(4, &[("c", Primary), ("b", Standby), ("a", Leaving)]));
    // There is no other one.
    let lonely = but(fit(&["b"]), "a", Rejection::Draining);
    let decision = assign_with(&another, &decided(2, &[("b", Primary), ("a", Leaving)]), &[claim("a", 1, 1)], &lonely);
    assert_eq!(decision, decided(3, &[("b", Primary), ("a", Leaving)]));
    // It has answered in the meantime.
    let decision = assign_with(&another, &moving, &[claim("a", 1, 1), claim("b", 2, 2)], &candidates);
    assert_eq!(decision, decided(2, &[("b", Primary), ("c", Standby)]));
}

#[test]
fn a_wanted_move_is_make_before_break_too() {
    let current = decided(1, &[("a", Primary), ("b", Standby), ("c", Standby)]);
    let wanted = Besides { wish: Wish::MoveTo("d"), ..Besides::default() };
    let decision = assign_with(&wanted, &current, &[claim("a", 1, 1)], &fit(&["a", "b", "c", "d"]));
    assert_eq!(decision, decided(2, &[("d", Primary), ("b", Standby), ("c", Standby), ("a", Leaving)]));
    // It cannot have it any more.
    assert_eq!(assign_with(&wanted, &current, &[claim("a", 1, 1)], &fit(&["a", "b", "c"])), current);
}

#[test]
fn a_node_that_does_not_exist_any_more_loses_its_part() {
    let current = decided(1, &[("a", Primary), ("b", Standby)]);
    let none = but(Nodes::default(), "b", Rejection::SpeakerDead);
    assert_eq!(assign(&current, &[claim("a", 1, 1)], &none), decided(1, &[("b", Standby)]));
}

#[test]
fn an_interface_that_can_no_longer_announce_is_left_under_a_new_placement() {
    let current = decided(1, &[("a", Primary)]);
    let mut elsewhere = fit(&["a"]);
    elsewhere.0.fit.get_mut("a").unwrap().interfaces = vec!["eth1".to_owned()];
    let decision = assign(&current, &[], &elsewhere);
    assert_eq!((decision.placement, decision.assignments[0].interface.as_str()), (2, "eth1"));
}

#[test]
fn a_claim_of_the_highest_placement_there_is_does_not_overflow() {
    let nodes = but(fit(&["b"]), "a", Rejection::Excluded);
    let next =
        assign_with(&Besides::default(), &decided(3, &[("a", Role::Primary)]), &[claim("a", i64::MAX, 1)], &nodes);
    assert_eq!((next.primary(), next.placement), (Some("b"), i64::MAX));
}

#[test]
fn whoever_was_not_heard_yet_is_given_no_address_that_is_there_already() {
    let mut nodes = but(fit(&["n2", "n3"]), "n1", Rejection::SpeakerDead);
    nodes.0.fit.get_mut("n2").unwrap().heard = false;
    let current = decided(1, &[("n1", Role::Primary)]);
    assert_eq!(assign(&current, &[], &nodes), decided(2, &[("n3", Role::Primary)]));
    nodes.0.fit.remove("n3");
    assert_eq!(assign(&current, &[], &nodes), current, "nor if there is no other");
    let new = assign(&Decision::default(), &[], &nodes);
    assert_eq!(new, decided(1, &[("n2", Role::Primary)]), "a new address is nobody's yet");
}

/// These nodes, of which `deaf` does not hear `unheard`.
fn fit_but_deaf(nodes: &[&str], deaf: &str, unheard: &str) -> Nodes {
    let mut nodes = fit(nodes);
    nodes.0.fit.get_mut(deaf).unwrap().unheard.insert(unheard.to_owned());
    nodes
}

#[test]
fn a_standby_that_does_not_hear_its_primary_is_replaced_where_another_can() {
    let current = decided(1, &[("n1", Role::Primary), ("n2", Role::Standby), ("n3", Role::Standby)]);
    let claims = [claim("n1", 1, 1)];
    let replaced = assign(&current, &claims, &fit_but_deaf(&["n1", "n2", "n3", "n4"], "n2", "n1"));
    assert_eq!(replaced, decided(1, &[("n1", Role::Primary), ("n3", Role::Standby), ("n4", Role::Standby)]));
    let kept = assign(&current, &claims, &fit_but_deaf(&["n1", "n2", "n3"], "n2", "n1"));
    assert_eq!(
        kept,
        decided(1, &[("n1", Role::Primary), ("n3", Role::Standby), ("n2", Role::Standby)]),
        "better than none"
    );
    let other = assign(&current, &claims, &fit_but_deaf(&["n1", "n2", "n3", "n4"], "n2", "n4"));
    assert_eq!(other, current, "whom a standby has nothing to do with is no reason");
}

#[test]
fn standbys_that_do_not_hear_their_primary_take_no_place_from_those_that_do() {
    let current = decided(1, &[("n1", Role::Primary), ("n2", Role::Standby), ("n3", Role::Standby)]);
    let mut nodes = fit_but_deaf(&["n1", "n2", "n3", "n4", "n5"], "n2", "n1");
    nodes.0.fit.get_mut("n3").unwrap().unheard.insert("n1".to_owned());
    let besides = Besides { partners: ["n2", "n3", "n4"].map(str::to_owned).into(), ..Besides::default() };
    let replaced = assign_with(&besides, &current, &[claim("n1", 1, 1)], &nodes);
    assert_eq!(replaced, decided(1, &[("n1", Role::Primary), ("n4", Role::Standby), ("n5", Role::Standby)]));
}

#[test]
fn who_does_not_hear_the_others_becomes_primary_last_and_stays_if_it_is() {
    let nodes = fit_but_deaf(&["n1", "n2"], "n1", "n2");
    let new = assign(&Decision::default(), &[], &nodes);
    assert_eq!(new, decided(1, &[("n2", Role::Primary), ("n1", Role::Standby)]));
    let current = decided(1, &[("n1", Role::Primary), ("n2", Role::Standby)]);
    assert_eq!(assign(&current, &[claim("n1", 1, 1)], &nodes), current, "nothing moves because of it");
}
