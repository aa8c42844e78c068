//! What each event does to the cluster.

use std::time::Duration;

use super::super::super::*;
use super::{
    cluster::*,
    facts::*,
    history::{Edit, NodeEvent, Op, Op::*, Rewrite, key, space_of},
};

impl Cluster {
    pub fn happen(&mut self, op: &Op) {
        match op {
            Service(..) | Edit(..) | Delete(_) | Recreate(_) | EditStatus(..) => self.service_happens(op),
            Pool(..) | Rewrite(..) | RemovePool(_) | Rename(..) | Split(..) => self.pool_happens(op),
            Space(space, env) => {
                let name = SPACES[usize::from(*space)];
                self.truth.spaces.insert(name.to_owned(), *env);
                self.space_changed(name);
            }
            DeleteSpace(space) => {
                (0..6).filter(|number| space_of(*number) == *space).for_each(|number| self.happen(&Delete(number)));
                let name = SPACES[usize::from(*space)];
                if self.truth.spaces.remove(name).is_some() {
                    self.space_changed(name);
                }
            }
            Node(number, event) => self.node_happens(NODES[usize::from(*number)], *event),
            Slice(number, part, endpoints) => {
                self.truth.slices.insert((key(*number), *part), endpoints.clone());
                self.slice_changed(&key(*number), *part);
            }
            DeleteSlice(number, part) => {
                if self.truth.slices.remove(&(key(*number), *part)).is_some() {
                    self.slice_changed(&key(*number), *part);
                }
            }
            Range(number, at) => {
                let name = format!("range{number}");
                match at {
                    Some(at) => self.truth.ranges.insert(name.clone(), *at),
                    None => self.truth.ranges.remove(&name),
                };
                self.range_changed(&name);
            }
            DeleteVip(at) => {
                let name = api::virtual_ip_name(four(*at));
                if let Some(vip) = self.vips.get(&name) {
                    let users = vip.spec.services.iter().cloned().collect();
                    self.judge.meddled(four(*at), &users);
                    self.remove_vip(&name);
                }
            }
            Foreign(at, true) => drop(self.foreign.insert(four(*at))),
            Foreign(at, false) => drop(self.foreign.remove(&four(*at))),
            Speak => self.speak(),
            SpeakAlone(number) => self.speak_alone(NODES[usize::from(*number)]),
            TakeOver => {
                self.judge.may_all_move();
                self.take_over();
            }
            Flow => {
                self.flow();
                super::judge::Judge::rest(self);
            }
            Deliver(watch, count) => {
                for _ in 0..*count {
                    self.deliver_one(*watch);
                }
            }
            Relist(watch) => self.relist(*watch),
            LoseLeases => {
                self.index.handle_lease_watch_lost(self.now);
                self.relist(Watch::Lease);
            }
            Poll(count) => {
                for _ in 0..*count {
                    self.poll();
                }
            }
            Carry(count, fate) => {
                for _ in 0..*count {
                    self.carry(*fate);
                }
            }
            Late => {
                if let Some(change) = self.late.pop_front() {
                    self.write(&change);
                }
            }
            Restart => self.restart(),
            Pass(seconds) => drop(self.pass(Duration::from_secs(u64::from(*seconds)))),
            Settle => self.settle(),
        }
    }

    /// Until nothing is left to do, and everything that takes its time has had it.
    pub fn settle(&mut self) {
        for round in 0..14 {
            self.flow();
            self.speak();
            self.flow();
            self.pass(Duration::from_secs(if round < 4 { 1 } else { 8 }));
        }
        super::judge::Judge::rest(self);
        for sentence in super::judge::settled(self) {
            self.judge.fault(|| sentence);
        }
    }

    fn service_happens(&mut self, op: &Op) {
        let (number, edits): (u8, &[Edit]) = match op {
            Service(number, edits) => (*number, edits),
            Edit(number, edit) => (*number, std::slice::from_ref(edit)),
            Delete(number) | Recreate(number) | EditStatus(number, _) => (*number, &[]),
            _ => return,
        };
        let key = key(number);
        if matches!(op, Service(..)) && !self.truth.services.contains_key(&key) {
            let space = SPACES[usize::from(space_of(number))];
            if !self.truth.spaces.contains_key(space) {
                self.truth.spaces.insert(space.to_owned(), None);
                self.space_changed(space);
            }
            let service = ServiceFact {
                uid: self.next_uid(),
                space: space_of(number),
                kind: Kind::LoadBalancer,
                tier: None,
                families: Families::Four,
                pool: None,
                ask: Ask::Nothing,
                key: None,
                ports: 1,
                local: false,
                selector: Some(0),
            };
            self.truth.services.insert(key.clone(), service);
        }
        let uid = self.next_uid();
        let Some(service) = self.truth.services.get_mut(&key) else { return };
        // What is on its way out does not come back.
        let is_going = service.kind == Kind::Terminating;
        for edit in edits {
            match *edit {
                Edit::Kind(kind) if !is_going => service.kind = kind,
                Edit::Kind(_) => {}
                Edit::Families(families) => service.families = families,
                Edit::Ask(ask) => service.ask = ask,
                Edit::Pool(pool) => service.pool = pool,
                Edit::Key(key) => service.key = key,
                Edit::Ports(ports) => service.ports = ports,
                Edit::Local(local) => service.local = local,
                Edit::Selector(selector) => service.selector = selector,
                Edit::Tier(tier) => service.tier = tier,
            }
        }
        match op {
            Delete(_) => drop(self.truth.services.remove(&key)),
            Recreate(_) => {
                let mut again = service.clone();
                again.uid = uid;
                if is_going {
                    again.kind = Kind::LoadBalancer;
                }
                self.truth.services.remove(&key);
                self.service_changed(&key);
                self.truth.services.insert(key.clone(), again);
            }
            EditStatus(_, at) if service.kind != Kind::ClusterIp => self.edit_status(&key, four(*at)),
            _ => {}
        }
        self.service_changed(&key);
    }

    fn edit_status(&mut self, key: &str, address: IpAddr) {
        self.judge.showed(key, address);
        let status = &mut self.shown.get_mut(key).unwrap().status;
        status["loadBalancer"] = serde_json::json!({ "ingress": [{ "ip": address }] });
    }

    fn pool_happens(&mut self, op: &Op) {
        let name = |number: u8| POOLS[usize::from(number)];
        match op {
            Pool(number, rewrites) => {
                let created = self.next_uid();
                // Each in a place of its own, to begin with.
                let addresses = Addrs { fours: 0b11 << (2 * number), sixes: 1 << number, vast: false };
                let known = self.truth.pools.entry(name(*number).to_owned());
                let pool = known.or_insert(PoolFact::plain(addresses, created));
                rewrites.iter().for_each(|rewrite| pool.rewrite(*rewrite));
                self.pool_changed(name(*number));
            }
            Rewrite(number, rewrite) => {
                let Some(pool) = self.truth.pools.get_mut(name(*number)) else { return };
                pool.rewrite(*rewrite);
                self.pool_changed(name(*number));
            }
            RemovePool(number) => self.remove_pool(name(*number)),
            Rename(from, to, before) => {
                let Some(mut pool) = self.truth.pools.get(name(*from)).cloned().filter(|_| from != to) else { return };
                pool.created = self.next_uid();
                if !before {
                    self.remove_pool(name(*from));
                }
                self.remove_pool(name(*to));
                self.truth.pools.insert(name(*to).to_owned(), pool);
                self.pool_changed(name(*to));
                self.remove_pool(name(*from));
            }
            Split(from, to, before) => {
                let Some(pool) = self.truth.pools.get(name(*from)).cloned().filter(|_| from != to) else { return };
                let upper = Addrs { fours: pool.addresses.fours & !0b1_1111, ..pool.addresses };
                let lower = pool.addresses.without(upper);
                if upper == Addrs::default() || lower == Addrs::default() {
                    return;
                }
                self.remove_pool(name(*to));
                let created = self.next_uid();
                let parts = [(*from, lower, pool.created), (*to, upper, created)];
                let order = if *before { [1, 0] } else { [0, 1] };
                for part in order {
                    let (number, addresses, created) = parts[part];
                    let part = PoolFact { addresses, created, ..pool.clone() };
                    self.truth.pools.insert(name(number).to_owned(), part);
                    self.pool_changed(name(number));
                }
            }
            _ => {}
        }
    }

    fn remove_pool(&mut self, name: &str) {
        if self.truth.pools.remove(name).is_some() {
            self.pool_changed(name);
        }
    }

    fn node_happens(&mut self, name: &str, event: NodeEvent) {
        match event {
            NodeEvent::Add if !self.truth.nodes.contains_key(name) => {
                self.add_node(name, 0);
                self.node_changed(name);
                self.speaker_changed(name);
                self.renew(name);
            }
            // A Speaker goes with its Node.
            NodeEvent::Remove if self.truth.nodes.remove(name).is_some() => {
                self.truth.speakers.remove(name);
                self.alive.remove(name);
                self.remove_lease(name);
                self.node_changed(name);
                self.speaker_changed(name);
            }
            NodeEvent::Dies => drop(self.alive.remove(name)),
            NodeEvent::Lives if self.truth.speakers.contains_key(name) => {
                self.alive.insert(name.to_owned());
                self.renew(name);
            }
            NodeEvent::SpeakerDrains(_) | NodeEvent::SpeakerAddress(_) | NodeEvent::Ipvs(_) | NodeEvent::Nics(_) => {
                let Some(speaker) = self.truth.speakers.get_mut(name) else { return };
                match event {
                    NodeEvent::SpeakerDrains(on) => speaker.draining = on,
                    NodeEvent::SpeakerAddress(at) => speaker.address = at,
                    NodeEvent::Ipvs(at) => speaker.ipvs = at,
                    NodeEvent::Nics(nics) => speaker.nics = nics,
                    _ => {}
                }
                self.speaker_changed(name);
            }
            _ => {
                let Some(node) = self.truth.nodes.get_mut(name) else { return };
                match event {
                    NodeEvent::Ready(on) => node.ready = on,
                    NodeEvent::Exclude(on) => node.excluded = on,
                    NodeEvent::Zone(zone) => node.zone = zone,
                    NodeEvent::Drain(on) => node.drain = on,
                    NodeEvent::OutOfService(on) => node.out_of_service = on,
                    NodeEvent::Address(at) => node.address = at,
                    NodeEvent::Pods(at) => node.pods = at,
                    _ => {}
                }
                self.node_changed(name);
            }
        }
    }
}

impl PoolFact {
    fn rewrite(&mut self, rewrite: Rewrite) {
        match rewrite {
            Rewrite::Addresses(addresses) => self.addresses = addresses,
            Rewrite::Exclude(exclude) => self.exclude = exclude,
            Rewrite::Bad(bad) => self.bad = bad,
            Rewrite::Auto(auto) => self.auto = auto,
            Rewrite::AvoidBuggy(avoid) => self.avoid_buggy = avoid,
            Rewrite::Priority(priority) => self.priority = priority,
            Rewrite::Tier(tier) => self.tier = tier,
            Rewrite::Space(space) => self.spaces = space.into_iter().collect(),
            Rewrite::Env(env) => self.env = env,
            Rewrite::Zone(zone) => self.zone = zone,
            Rewrite::Fast(fast) => self.fast = fast,
            Rewrite::Interface(only) => self.interface = only.then_some("eth0"),
        }
    }
}
