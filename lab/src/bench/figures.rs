//! What was measured, as numbers and as a table. Pure, but for the line about the machine.

use std::fmt::Write as _;
use std::fs;
use std::time::{Duration, Instant};

use super::event::{Case, Promise};
use crate::traffic::{Losses, MessagesOutcome, Outcome};

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Sample {
    pub(super) subject: String,
    pub(super) case: Case,
    pub(super) struck: Instant,
    pub(super) datagrams: Outcome,
    pub(super) connections: Outcome,
    pub(super) messages: MessagesOutcome,
    /// What the server dropped because it was too slow.
    pub(super) own: Losses,
    pub(super) wire: Wire,
}

/// What the frames say, where they were looked at.
#[derive(Clone, Debug, Default)]
pub(super) struct Wire {
    /// Answers of the woken node before it probed.
    pub(super) unasked: Option<u64>,
    /// How long two nodes answered after the LAN was healed.
    pub(super) two_owners: Option<Duration>,
    /// Whether both clients and the gateway believe the one owner afterwards.
    pub(super) caches_right: Option<bool>,
    /// Traffic did not follow to another node, though it should have.
    pub(super) stuck: bool,
}

impl Sample {
    pub(super) const HEADER: &str = "subject,case,datagrams,datagram_gap_ms,datagrams_lost,connections,connection_gap_ms,\
        connections_lost,connections_cut,established_reset,unasked_answers,two_owners_ms,caches_right,stuck,client_missed,dropped_by_lab";

    pub(super) fn csv(&self) -> String {
        let optional = |value: Option<String>| value.unwrap_or_default();
        [
            self.subject.clone(),
            self.case.key(),
            self.datagrams.begun.to_string(),
            milliseconds(gap(&self.datagrams)),
            self.datagrams_lost().to_string(),
            self.connections.begun.to_string(),
            milliseconds(gap(&self.connections)),
            self.connections_lost().to_string(),
            self.connections.cut().to_string(),
            self.messages.cut().to_string(),
            optional(self.wire.unasked.map(|count| count.to_string())),
            optional(self.wire.two_owners.map(milliseconds)),
            optional(self.wire.caches_right.map(|right| right.to_string())),
            self.wire.stuck.to_string(),
            self.missed().to_string(),
            self.dropped().to_string(),
        ]
        .join(",")
    }

    /// Without what the lab lost itself.
    pub(super) fn datagrams_lost(&self) -> u64 {
        self.datagrams.lost().saturating_sub(self.datagrams.losses.datagrams + self.own.datagrams)
    }

    pub(super) fn connections_lost(&self) -> u64 {
        self.connections.lost().saturating_sub(self.own.connections)
    }

    /// What the client was to send and did not in time: meanwhile it could see neither gap nor loss.
    fn missed(&self) -> u64 {
        self.datagrams.missed + self.connections.missed
    }

    fn dropped(&self) -> u64 {
        self.datagrams.losses.datagrams + self.own.datagrams + self.own.connections + self.own.backlog
    }

    /// Whether it breaks what l2lb promises; of a percentile, whether this run alone would.
    pub(super) fn is_bad(&self) -> bool {
        let unasked = self.wire.unasked.is_some_and(|count| count > 0) || self.wire.caches_right == Some(false);
        unasked
            || self.wire.stuck
            || match self.case.promise() {
                Promise::Nothing => false,
                Promise::Gap(most) => gap(&self.datagrams).max(gap(&self.connections)) > most,
                Promise::NoLoss => self.datagrams_lost() + self.connections_lost() > 0,
                Promise::OneOwner(most) => self.wire.two_owners.is_some_and(|lasted| lasted > most),
            }
    }

    pub(super) fn told(&self) -> String {
        let mut text = format!(
            "silent for {} ms (datagrams), {} ms (connections); lost: {} datagrams, {} new connections; {} of 20 established reset",
            milliseconds(gap(&self.datagrams)),
            milliseconds(gap(&self.connections)),
            self.datagrams_lost(),
            self.connections_lost(),
            self.messages.cut(),
        );
        if self.is_bad() {
            let _ = write!(
                text,
                "\n       datagrams: {}\n       connections: {}\n       {:?}",
                self.datagrams.told(self.struck),
                self.connections.told(self.struck),
                self.wire
            );
        }
        text
    }
}

fn gap(outcome: &Outcome) -> Duration {
    outcome.gap.map_or(Duration::ZERO, |gap| gap.lasted)
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.0}", duration.as_secs_f64() * 1000.0)
}

/// Rows of the table.
pub(super) struct Figures(Vec<Row>);

struct Row {
    subject: String,
    case: Case,
    runs: usize,
    datagram_gap: Spread,
    connection_gap: Spread,
    datagrams_lost: Spread,
    connections_lost: Spread,
    /// New connections that were accepted, and then reset or never answered.
    connections_cut: Spread,
    established_reset: Spread,
    missed: Spread,
    two_owners: Option<Spread>,
    unasked: Option<u64>,
    caches_wrong: usize,
    stuck: usize,
}

/// What a client misses more of than this in one run is worth a word: 10 ms of datagrams and of connections.
const MISSED: u64 = 20;

/// Median, 99th percentile (nearest rank) and greatest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Spread {
    median: u64,
    p99: u64,
    greatest: u64,
}

impl Spread {
    fn of(values: impl Iterator<Item = u64>) -> Self {
        let mut sorted: Vec<u64> = values.collect();
        sorted.sort_unstable();
        let rank = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().unwrap_or_default()
        };
        Self { median: rank(50), p99: rank(99), greatest: rank(100) }
    }

    fn shown(self) -> String {
        format!("{} / {} / {}", self.median, self.p99, self.greatest)
    }
}

impl Figures {
    /// Samples of one subject and case stand together.
    pub(super) fn of(samples: &[Sample]) -> Self {
        let mut groups: Vec<(&str, Case, Vec<&Sample>)> = Vec::new();
        for sample in samples {
            match groups.iter_mut().find(|(subject, case, _)| *subject == sample.subject && *case == sample.case) {
                Some((_, _, group)) => group.push(sample),
                None => groups.push((&sample.subject, sample.case, vec![sample])),
            }
        }
        Self(groups.into_iter().map(|(subject, case, group)| Row::of(subject, case, &group)).collect())
    }

    pub(super) fn table(&self) -> String {
        let mut text = String::from(
            "| | event | runs | no datagram answered, ms | no new connection answered, ms | datagrams lost | new connections lost | \
             accepted, then reset or silent | of 20 established, reset | on the wire | promised | kept |\n|---|---|---|---|---|---|---|---|---|---|---|---|\n",
        );
        for row in &self.0 {
            let (promised, kept) = row.verdict();
            let _ = writeln!(
                text,
                "| {} | {} | {} | {} | {} | {} | {} | {} | {} | {} | {promised} | {kept} |",
                row.subject,
                row.case,
                row.runs,
                row.datagram_gap.shown(),
                row.connection_gap.shown(),
                row.datagrams_lost.shown(),
                row.connections_lost.shown(),
                row.connections_cut.shown(),
                row.established_reset.shown(),
                row.seen(),
            );
        }
        text + "\nmedian / p99 / greatest of the runs. A gap is the longest time that the client waited for any answer; of a run without loss it is what the \
                machine adds (see the row in which nothing happens).\n"
    }
}

impl Row {
    fn of(subject: &str, case: Case, group: &[&Sample]) -> Self {
        let spread = |value: &dyn Fn(&Sample) -> u64| Spread::of(group.iter().map(|sample| value(sample)));
        let in_ms = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let two_owners: Vec<u64> = group.iter().filter_map(|sample| sample.wire.two_owners).map(in_ms).collect();
        Self {
            subject: subject.to_owned(),
            case,
            runs: group.len(),
            datagram_gap: spread(&|sample| in_ms(gap(&sample.datagrams))),
            connection_gap: spread(&|sample| in_ms(gap(&sample.connections))),
            datagrams_lost: spread(&Sample::datagrams_lost),
            connections_lost: spread(&Sample::connections_lost),
            connections_cut: spread(&|sample| sample.connections.cut()),
            established_reset: spread(&|sample| sample.messages.cut() as u64),
            missed: spread(&Sample::missed),
            two_owners: (!two_owners.is_empty()).then(|| Spread::of(two_owners.into_iter())),
            unasked: group.iter().filter_map(|sample| sample.wire.unasked).reduce(|sum, count| sum + count),
            caches_wrong: group.iter().filter(|sample| sample.wire.caches_right == Some(false)).count(),
            stuck: group.iter().filter(|sample| sample.wire.stuck).count(),
        }
    }

    /// What the frames said.
    fn seen(&self) -> String {
        let two = self.two_owners.map(|spread| format!("two owners for {} ms", spread.shown()));
        let unasked = self.unasked.map(|count| format!("{count} answers before probing"));
        let wrong = (self.caches_wrong > 0).then(|| format!("caches wrong {} times", self.caches_wrong));
        let missed = (self.missed.greatest > MISSED)
            .then(|| format!("the client itself stood still for up to {} of its questions", self.missed.greatest));
        let stuck = (self.stuck > 0).then(|| format!("{} times no other node took over while it was so", self.stuck));
        [two, unasked, wrong, stuck, missed].into_iter().flatten().collect::<Vec<_>>().join(", ")
    }

    /// What l2lb promises, and whether it was kept.
    fn verdict(&self) -> (String, &'static str) {
        let whole = |duration: Duration| u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
        let (mut promised, mut kept) = match self.case.promise() {
            Promise::Nothing => (String::new(), true),
            Promise::Gap(most) => {
                let p99 = self.datagram_gap.p99.max(self.connection_gap.p99);
                (format!("p99 ≤ {} ms", whole(most)), p99 <= whole(most))
            }
            Promise::NoLoss => {
                ("0 lost".to_owned(), self.datagrams_lost.greatest + self.connections_lost.greatest == 0)
            }
            Promise::OneOwner(most) => {
                let lasted = self.two_owners.map_or(0, |spread| spread.greatest);
                (format!("two owners for ≤ {} ms, caches right", whole(most)), lasted <= whole(most))
            }
        };
        if let Some(unasked) = self.unasked {
            promised += ", 0 answers before probing";
            kept &= unasked == 0;
        }
        kept &= self.caches_wrong == 0 && self.stuck == 0;
        match (self.subject == super::product::NAME && !promised.is_empty(), kept) {
            (false, _) => (String::new(), ""),
            (true, true) => (promised, "yes"),
            (true, false) => (promised, "NO"),
        }
    }
}

/// Which machine, which command, and how long it took.
pub(super) fn heading(command: &str, took: Duration) -> String {
    let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
    let processor = read("/proc/cpuinfo");
    let model = processor.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    let model = model.map_or("an unnamed processor", |(_, name)| name);
    let count = processor.lines().filter(|line| line.starts_with("processor")).count();
    let kernel = read("/proc/sys/kernel/osrelease");
    let load = read("/proc/loadavg");
    format!(
        "\n{count} x {model}, Linux {}, load {} at the end; `lab {command}`, {:.0} min\n\n",
        kernel.trim(),
        load.split_whitespace().next().unwrap_or("?"),
        took.as_secs_f64() / 60.0
    )
}

#[cfg(test)]
mod tests {
    use super::super::event::{Class, Event};
    use super::*;
    use crate::traffic::{Failure, Gap};

    fn sample(case: Case, gap_ms: u64, lost: u64) -> Sample {
        let now = Instant::now();
        let mut outcome = Outcome {
            begun: 1000,
            gap: Some(Gap { since: now, lasted: Duration::from_millis(gap_ms) }),
            ..Outcome::default()
        };
        outcome.failed.insert(Failure::Unanswered, lost);
        Sample {
            subject: "l2lb".to_owned(),
            case,
            struck: now,
            datagrams: outcome.clone(),
            connections: outcome,
            messages: MessagesOutcome::default(),
            own: Losses::default(),
            wire: Wire::default(),
        }
    }

    #[test]
    fn percentiles_are_of_the_nearest_rank() {
        assert_eq!(Spread::of(1..=30), Spread { median: 15, p99: 30, greatest: 30 });
        assert_eq!(Spread::of(1..=200), Spread { median: 100, p99: 198, greatest: 200 });
        assert_eq!(Spread::of([7].into_iter()).shown(), "7 / 7 / 7");
    }

    #[test]
    fn a_promise_is_kept_or_not() {
        let off = Case { class: Some(Class::Fast), ..Case::of(Event::PowerOff) };
        let verdict = |samples: &[Sample]| Figures::of(samples).0[0].verdict();
        assert_eq!(verdict(&[sample(off, 250, 250), sample(off, 299, 299)]).1, "yes");
        assert_eq!(verdict(&[sample(off, 250, 250), sample(off, 301, 299)]), ("p99 ≤ 300 ms".to_owned(), "NO"));
        let moved = Case::of(Event::Moved);
        assert_eq!(verdict(&[sample(moved, 90, 0)]), ("0 lost".to_owned(), "yes"));
        assert_eq!(verdict(&[sample(moved, 90, 0), sample(moved, 2, 1)]).1, "NO");
        let mut dropped = sample(moved, 2, 1);
        dropped.own = Losses { datagrams: 1, connections: 1, ..Losses::default() };
        assert!(!dropped.is_bad(), "the lab lost it");
    }

    #[test]
    fn two_answerers_and_wrong_caches_are_seen() {
        let mut healed = sample(Case::of(Event::Partitioned), 5, 0);
        healed.wire =
            Wire { two_owners: Some(Duration::from_millis(900)), caches_right: Some(true), ..Wire::default() };
        assert!(!healed.is_bad());
        healed.wire.caches_right = Some(false);
        let row = &Figures::of(&[healed]).0[0];
        assert_eq!(
            (row.verdict().1, row.seen().as_str()),
            ("NO", "two owners for 900 / 900 / 900 ms, caches wrong 1 times")
        );
        let mut stuck = sample(Case::of(Event::Moved), 5, 0);
        stuck.wire.stuck = true;
        assert_eq!(Figures::of(&[stuck]).0[0].verdict().1, "NO");
        let mut woken = sample(Case::of(Event::Paused), 5, 0);
        woken.wire.unasked = Some(2);
        assert!(woken.is_bad());
    }

    #[test]
    fn every_column_has_a_name() {
        let columns = |text: &str| text.split(',').count();
        assert_eq!(columns(&sample(Case::of(Event::Nothing), 1, 0).csv()), columns(Sample::HEADER));
    }
}
