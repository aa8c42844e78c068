//! Answers to writes that are lost, or that come after other news.

use super::*;
use crate::controller::change::ServiceStatus;

/// The first write for a Service's status, on its way.
fn status_on_its_way(world: &mut World) -> (Target, ServiceStatus) {
    world.put_service(service("web"));
    world.run();
    world.speak();
    let (target, change) = world.next_but_pools().unwrap();
    let Change::ServiceStatus(status) = change else { panic!("{change:?}") };
    (target, status)
}

fn told(changes: &[Change]) -> usize {
    changes.iter().filter(|change| matches!(change, Change::ServiceEvent { .. })).count()
}

#[test]
fn the_answer_for_a_service_that_is_gone_does_not_bring_it_back() {
    let mut world = World::new();
    let (target, status) = status_on_its_way(&mut world);
    let answer = world.write(&Change::ServiceStatus(status));
    world.delete_service("web");
    world.index.handle_outcome(&target, answer, world.now);
    let mut changes = world.run();
    changes.extend(world.pass(5));
    assert!(world.vips.is_empty(), "its address is given back: {changes:?}");
    assert_eq!(told(&changes), 0);
}

#[test]
fn the_answer_for_a_service_that_was_made_anew_is_no_state_of_the_new_one() {
    let mut world = World::new();
    let (target, status) = status_on_its_way(&mut world);
    let answer = world.write(&Change::ServiceStatus(status));
    world.delete_service("web");
    let mut anew = service("web");
    anew["metadata"]["uid"] = "uid-anew".into();
    world.put_service(anew);
    world.index.handle_outcome(&target, answer, world.now);
    world.run();
    world.speak();
    world.pass(3);
    assert_eq!(world.shown("web").len(), 1, "{:?}", world.services);
}

#[test]
fn the_answer_for_a_virtual_ip_that_is_gone_does_not_bring_it_back() {
    let mut world = World::new();
    world.put_service(service("web"));
    let (target, change) = world.next_but_pools().unwrap();
    let answer = world.write(&change);
    // Somebody removes it as soon as it is there.
    let Outcome::VirtualIP(view) = &answer else { panic!("{answer:?}") };
    let (name, uid) = (view.name.clone(), view.uid.clone());
    world.index.handle(Input::VirtualIP(Delta::Apply(view.clone())), world.now);
    world.vips.remove(&name);
    world.index.handle(Input::VirtualIP(Delta::Delete(name.clone(), uid)), world.now);
    world.index.handle_outcome(&target, answer, world.now);
    world.run();
    world.pass(1);
    assert!(world.vips.contains_key(&name), "it is made again");
}

#[test]
fn a_status_that_was_written_without_an_answer_is_told_once() {
    for news_first in [true, false] {
        let mut world = World::new();
        let (target, status) = status_on_its_way(&mut world);
        let Outcome::Service(view) = world.write(&Change::ServiceStatus(status)) else { panic!("not written") };
        let news = Input::Service(Delta::Apply(view));
        let mut changes = Vec::new();
        if news_first {
            world.index.handle(news.clone(), world.now);
            changes.extend(world.run());
            world.index.handle_outcome(&target, Outcome::Failed, world.now);
        } else {
            world.index.handle_outcome(&target, Outcome::Failed, world.now);
            // Sent again, it is refused: the object has changed.
            changes.extend(world.pass(1));
            world.index.handle(news, world.now);
        }
        changes.extend(world.pass(5));
        assert_eq!(told(&changes), 1, "news first: {news_first}; {changes:?}");
    }
}

#[test]
fn a_status_that_failed_and_is_written_the_second_time_is_told_once() {
    let mut world = World::new();
    let (target, _) = status_on_its_way(&mut world);
    world.index.handle_outcome(&target, Outcome::Failed, world.now);
    let changes = world.pass(5);
    assert_eq!(told(&changes), 1, "{changes:?}");
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
}

#[test]
fn a_list_older_than_what_we_wrote_since_makes_no_writes() {
    let mut world = World::new();
    world.put_service(service("web"));
    world.run();
    let old = world.lists();
    world.speak();
    world.run();
    for input in old.into_iter().filter(|input| matches!(input, Input::Service(_))) {
        world.index.handle(input, world.now);
    }
    assert_eq!(but_pools(world.run()), []);
}

#[test]
fn an_event_that_nobody_takes_is_forgotten_in_the_end() {
    let mut world = World::new();
    world.put_service(service("web"));
    world.run();
    world.speak();
    let mut attempts = 0;
    for _ in 0..150 {
        while let Some((target, change)) = world.index.poll_change(world.now) {
            let outcome = match change {
                Change::ServiceEvent { number: 1, .. } => {
                    attempts += 1;
                    Outcome::Failed
                }
                change => world.write(&change),
            };
            world.index.handle_outcome(&target, outcome, world.now);
        }
        world.now += Duration::from_secs(1);
    }
    assert_eq!(attempts, outcomes::EVENT_ATTEMPTS);
}
