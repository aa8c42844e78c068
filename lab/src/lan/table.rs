//! The MAC table of a learning switch. Pure: the caller says what time it is.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use pnet_base::MacAddr;

use super::PortId;
use super::frame::is_group;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// To the one port on which its destination was last heard.
    Port(PortId),
    /// To all other ports, because it is for a group.
    Group,
    /// To all other ports, because nobody knows where its destination is.
    Flood,
    /// Nowhere: its destination is on the port that it came from.
    Filtered,
}

/// MAC address to port, each entry forgotten when its address was not heard for the ageing time.
#[derive(Clone, Debug)]
pub struct SwitchTable {
    ageing: Duration,
    heard: HashMap<MacAddr, (PortId, Instant)>,
}

impl SwitchTable {
    /// An empty table.
    pub fn new(ageing: Duration) -> Self {
        Self { ageing, heard: HashMap::new() }
    }

    /// Changes the ageing time, also for the entries that are there.
    pub fn set_ageing(&mut self, ageing: Duration) {
        self.ageing = ageing;
    }

    /// Learns where `source` is and says where a frame for `destination` goes.
    pub fn forward(&mut self, ingress: PortId, source: MacAddr, destination: MacAddr, now: Instant) -> Way {
        if !is_group(source) && !source.is_zero() {
            self.heard.insert(source, (ingress, now));
        }
        if is_group(destination) {
            return Way::Group;
        }
        match self.port_of(destination, now) {
            Some(port) if port == ingress => Way::Filtered,
            Some(port) => Way::Port(port),
            None => Way::Flood,
        }
    }

    /// The port on which `mac` was last heard, unless that is too long ago.
    pub fn port_of(&self, mac: MacAddr, now: Instant) -> Option<PortId> {
        let (port, at) = self.heard.get(&mac)?;
        (now.saturating_duration_since(*at) < self.ageing).then_some(*port)
    }

    /// Forgets what was heard on `port`, as switches do when its link goes down.
    pub fn forget_port(&mut self, port: PortId) {
        self.heard.retain(|_, (on, _)| *on != port);
    }

    /// The entries that have not aged out, by port and address.
    pub fn entries(&self, now: Instant) -> Vec<(MacAddr, PortId)> {
        let mut entries: Vec<_> = self.heard.keys().filter_map(|mac| Some((*mac, self.port_of(*mac, now)?))).collect();
        entries.sort_by_key(|(mac, port)| (*port, *mac));
        entries
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: MacAddr = MacAddr(2, 0, 0, 0, 0, 0xa);
    const B: MacAddr = MacAddr(2, 0, 0, 0, 0, 0xb);
    const AGEING: Duration = Duration::from_secs(300);
    const ONE: PortId = PortId(1);
    const TWO: PortId = PortId(2);

    fn broadcast() -> MacAddr {
        MacAddr::broadcast()
    }

    #[test]
    fn unknown_destination_is_flooded_and_known_one_is_not() {
        let (mut table, now) = (SwitchTable::new(AGEING), Instant::now());
        assert_eq!(table.forward(ONE, A, B, now), Way::Flood);
        assert_eq!(table.forward(TWO, B, A, now), Way::Port(ONE));
        assert_eq!(table.forward(ONE, A, B, now), Way::Port(TWO));
    }

    #[test]
    fn entry_ages_out_and_each_frame_from_its_address_renews_it() {
        let (mut table, start) = (SwitchTable::new(AGEING), Instant::now());
        table.forward(ONE, A, broadcast(), start);
        let later = start + AGEING - Duration::from_millis(1);
        assert_eq!(table.port_of(A, later), Some(ONE));
        assert_eq!(table.port_of(A, start + AGEING), None);
        table.forward(ONE, A, broadcast(), later);
        assert_eq!(table.forward(TWO, B, A, start + AGEING), Way::Port(ONE));
        assert_eq!(table.forward(TWO, B, A, later + AGEING), Way::Flood);
    }

    #[test]
    fn frames_to_an_address_do_not_renew_it() {
        let (mut table, start) = (SwitchTable::new(AGEING), Instant::now());
        table.forward(ONE, A, broadcast(), start);
        table.forward(TWO, B, A, start + AGEING / 2);
        assert_eq!(table.forward(TWO, B, A, start + AGEING), Way::Flood);
    }

    #[test]
    fn address_that_moves_is_learned_at_its_new_port() {
        let (mut table, now) = (SwitchTable::new(AGEING), Instant::now());
        table.forward(ONE, A, broadcast(), now);
        table.forward(TWO, A, broadcast(), now);
        assert_eq!(table.entries(now), [(A, TWO)]);
    }

    #[test]
    fn frame_for_its_own_port_is_filtered() {
        let (mut table, now) = (SwitchTable::new(AGEING), Instant::now());
        table.forward(ONE, A, broadcast(), now);
        assert_eq!(table.forward(ONE, B, A, now), Way::Filtered);
    }

    #[test]
    fn group_addresses_are_never_learned() {
        let (mut table, now) = (SwitchTable::new(AGEING), Instant::now());
        table.forward(ONE, broadcast(), B, now);
        table.forward(ONE, MacAddr::zero(), B, now);
        assert_eq!(table.entries(now), []);
        assert_eq!(table.forward(TWO, B, broadcast(), now), Way::Group);
    }

    #[test]
    fn port_that_went_down_is_forgotten() {
        let (mut table, now) = (SwitchTable::new(AGEING), Instant::now());
        table.forward(ONE, A, broadcast(), now);
        table.forward(TWO, B, broadcast(), now);
        table.forget_port(ONE);
        assert_eq!(table.entries(now), [(B, TWO)]);
    }
}
