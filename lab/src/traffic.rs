//! A client's traffic for measurements: what was lost, for how long nobody answered, and who forwarded it.
//!
//! | what | how |
//! |---|---|
//! | [`Datagrams`] | numbered UDP datagrams at a steady rate, each echoed by the [`Backend`] |
//! | [`Connections`] | new TCP connections at a steady rate, each with one small request |
//! | [`Messages`] | TCP connections that stay, each with a small message now and then |
//! | [`Backend`] | the server behind the address, for all three |
//!
//! All run in the network namespace of a host, for addresses of either family. The senders are plain threads that keep to absolute
//! time. What was lost is told from what was late: an answer counts whenever it comes within [`PATIENCE`]. What the
//! client itself did not send in time was not sent and is not lost ([`Outcome::missed`]), and what the kernel dropped
//! because a program of the lab read too slowly is counted apart ([`Losses`]). Every answer names the address that the backend
//! saw, which with `externalTrafficPolicy: Cluster` is that of the node that forwarded it.

mod backend;
mod connections;
mod counters;
mod datagrams;
mod ledger;
mod messages;
mod service;

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

pub use self::backend::Backend;
pub use self::connections::{Connections, REPEATED};
pub use self::counters::Losses;
pub use self::datagrams::Datagrams;
pub use self::messages::{Messages, MessagesOutcome};
pub use self::service::{PORT, service};

/// What has no answer after this time is lost.
pub const PATIENCE: Duration = Duration::from_secs(3);

/// Why one datagram or connection came to nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Failure {
    /// Nothing came back.
    Unanswered,
    /// The client's own kernel would not send it, or somebody on the way said that it cannot be delivered.
    Unreachable,
    /// The connection was refused: its SYN was answered with a reset.
    Refused,
    /// The first SYN was not answered, a later one was: the connection came to be, a second late or more.
    Repeated,
    /// The connection was established and then reset.
    Reset,
    /// The connection was established, and the request on it not answered.
    Silent,
}

impl Failure {
    /// Whether the connection had been accepted before: a move may cost that, since the new node knows nothing of it.
    pub fn was_established(self) -> bool {
        matches!(self, Self::Reset | Self::Silent)
    }
}

/// A time without an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Gap {
    /// When the first was sent that got no answer of its own or a later one's.
    pub since: Instant,
    /// How long it took from there until an answer came, to it or to a later one.
    pub lasted: Duration,
}

/// What became of a stream of datagrams or connections.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// How many were sent or begun.
    pub begun: u64,
    /// How many were answered, however late.
    pub answered: u64,
    /// The others, by reason.
    pub failed: BTreeMap<Failure, u64>,
    /// When each of the first hundred of these was begun, and its reason.
    pub failures: Vec<(Instant, Failure)>,
    /// The longest time in which the client waited for any answer. Of the order of a round trip when nothing is wrong; a time in which the
    /// client sent nothing is none.
    pub gap: Option<Gap>,
    /// The slowest answer.
    pub slowest: Duration,
    /// Whom the backend saw, in the order in which it was sent: when this one's first was begun. At most 1,000.
    pub ways: Vec<(Instant, IpAddr)>,
    /// What was not sent, because the client's thread was held up.
    pub missed: u64,
    /// What the client's kernel says of drops.
    pub losses: Losses,
}

impl Outcome {
    /// Datagrams without an answer, or connections whose SYN had none at the first time.
    pub fn lost(&self) -> u64 {
        self.failed.iter().filter(|(failure, _)| !failure.was_established()).map(|(_, count)| count).sum()
    }

    /// Connections that were accepted and then cut.
    pub fn cut(&self) -> u64 {
        self.failed.iter().filter(|(failure, _)| failure.was_established()).map(|(_, count)| count).sum()
    }

    /// The failures as a sentence, by when they were begun after `since`.
    pub fn told(&self, since: Instant) -> String {
        let after = |at: &Instant| {
            let before = since.saturating_duration_since(*at).as_secs_f64();
            at.saturating_duration_since(since).as_secs_f64() - before
        };
        let each: Vec<_> =
            self.failures.iter().take(12).map(|(at, failure)| format!("{failure:?} at {:.3} s", after(at))).collect();
        let gap = self.gap.map_or(0.0, |gap| gap.lasted.as_secs_f64());
        format!(
            "{} begun, {} answered, failed: {:?} ({}); longest silence {gap:.3} s, {} missed by the client, drops {:?}",
            self.begun,
            self.answered,
            self.failed,
            each.join(", "),
            self.missed,
            self.losses,
        )
    }
}

/// An answer: the number of the request, and whom the backend saw.
const ANSWER: usize = REQUEST + 16;
/// A request: its number, big endian.
const REQUEST: usize = 8;

fn answer_to(request: [u8; REQUEST], from: SocketAddr) -> [u8; ANSWER] {
    let seen = match from.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut answer = [0; ANSWER];
    answer[..REQUEST].copy_from_slice(&request);
    answer[REQUEST..].copy_from_slice(&seen.octets());
    answer
}

/// The number and the address in an answer; `None` for what is none.
fn read_answer(bytes: &[u8]) -> Option<(u64, IpAddr)> {
    let (number, seen) = bytes.split_first_chunk::<REQUEST>()?;
    let seen: [u8; 16] = seen.try_into().ok()?;
    Some((u64::from_be_bytes(*number), IpAddr::from(Ipv6Addr::from(seen)).to_canonical()))
}

/// The unspecified address of the same family.
fn any_of(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_names_whom_the_backend_saw() {
        for seen in ["10.100.0.11:1", "[fd00:10:100::11]:1", "[::ffff:10.100.0.11]:1"] {
            let seen: SocketAddr = seen.parse().unwrap();
            let answer = answer_to(7_u64.to_be_bytes(), seen);
            assert_eq!(read_answer(&answer), Some((7, seen.ip().to_canonical())));
        }
        assert_eq!(read_answer(&[0; 23]), None);
    }
}
