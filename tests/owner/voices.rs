//! Who spoke for a virtual IP, read off the recorded frames, and whether there was one voice.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use lab::lan::RecordedFrame;
use lab::lan::frame::ArpForm;
use lab::lan::said;

use crate::books::eventually;
use crate::site::{Place, Site};

/// How long what was on its way may still be heard after another node's claim: the time in which a process that runs sees
/// the claim, on a machine that is busy.
pub const UNDER_WAY: Duration = Duration::from_millis(100);

/// One frame whose sender address is a virtual IP, out of a node's NIC.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Word {
    pub at: Instant,
    pub by: Place,
    pub form: ArpForm,
}

/// A time during which one node spoke, from its claim (or its first word) to its last word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Turn {
    pub by: Place,
    pub from: Instant,
    pub last: Instant,
}

impl Word {
    pub fn is_claim(&self) -> bool {
        matches!(self.form, ArpForm::AnnouncementRequest | ArpForm::AnnouncementReply)
    }
}

impl Site<'_> {
    /// All that nodes said about an address, oldest first.
    ///
    /// # Errors
    /// When a frame told another MAC address than that of the NIC that it came out of.
    pub fn words(&self, vip: Ipv4Addr) -> Result<Vec<Word>> {
        let word = |frame: &RecordedFrame| {
            let said = said(frame, vip)?;
            let by = self.source(said.ingress)?;
            let honest = said.sender_mac == self.mac(by) && said.ethernet_source == self.mac(by);
            Some((Word { at: said.at, by, form: said.form }, honest))
        };
        let words = self.lan.select(word)?;
        ensure!(words.iter().all(|(_, honest)| *honest), "a frame for {vip} lied about who sent it");
        Ok(words.into_iter().map(|(word, _)| word).collect())
    }

    /// When nodes asked everybody, without a sender address, whether somebody has this address.
    pub fn probes(&self, vip: Ipv4Addr) -> Result<Vec<(Instant, Place)>> {
        self.lan.select(|frame| {
            let arp = frame.arp().filter(|arp| arp.form() == ArpForm::Probe && arp.target_ip == vip)?;
            let everybody = frame.destination().is_some_and(|to| to.0 & 1 == 1) && arp.sender_ip.is_unspecified();
            Some((frame.at, self.source(frame.ingress).filter(|_| everybody)?))
        })
    }

    /// Waits until a node that is `wanted` has spoken for an address after `since`: which one, and when it did so first.
    pub fn wait_for_word(
        &self,
        vip: Ipv4Addr,
        since: Instant,
        wanted: impl Fn(Place) -> bool,
    ) -> Result<(Place, Instant)> {
        let first = eventually(&format!("another node speaks for {vip}"), || {
            let words = self.words(vip)?;
            Ok(words.iter().find(|word| word.at > since && wanted(word.by)).map(|word| (word.by, word.at)))
        });
        first.with_context(|| self.report())
    }

    /// Waits until somebody has answered for an address so many times after `since`: silence cannot be seen without questions.
    pub fn wait_for_answers(&self, vip: Ipv4Addr, since: Instant, count: usize) -> Result<()> {
        let answered = eventually(&format!("{count} answers for {vip}"), || {
            let words = self.words(vip)?;
            let answers = words.iter().filter(|word| word.at > since && word.form == ArpForm::Reply).count();
            Ok((answers >= count).then_some(()))
        });
        answered.with_context(|| self.report())
    }

    /// Who spoke for an address after `since`.
    pub fn speakers_since(&self, vip: Ipv4Addr, since: Instant) -> Result<BTreeSet<Place>> {
        Ok(self.words(vip)?.iter().filter(|word| word.at > since).map(|word| word.by).collect())
    }

    /// The turns in which nodes spoke for an address, with a report when two spoke at once; see [`turns`].
    pub fn turns(&self, vip: Ipv4Addr) -> Result<Vec<Turn>> {
        turns(&self.words(vip)?, UNDER_WAY).with_context(|| format!("{vip}\n{}", self.report()))
    }
}

/// The turns in which nodes spoke. Who claimed last has the word, and whatever another says later than `under_way` after that
/// claim is a second voice; unless the one that claimed has fallen silent and the other claims in its turn: its receive path
/// answers as soon as it owns, which may be a moment before its claim is sent.
///
/// # Errors
/// When two spoke at once, with what was said around it.
pub fn turns(words: &[Word], under_way: Duration) -> Result<Vec<Turn>> {
    let mut turns: Vec<Turn> = Vec::new();
    for (index, word) in words.iter().enumerate() {
        match turns.last_mut() {
            Some(turn) if turn.by == word.by => turn.last = word.at,
            Some(turn) if !word.is_claim() => {
                let rest = &words[index..];
                let next = rest.iter().position(Word::is_claim);
                let begins = next.is_some_and(|next| rest[..=next].iter().all(|later| later.by == word.by));
                if !begins && word.at > turn.from + under_way {
                    bail!("two answered at once:{}", around(words, word.at));
                }
            }
            _ => turns.push(Turn { by: word.by, from: word.at, last: word.at }),
        }
    }
    // Where claims crossed, the one that was overruled had no turn.
    let count = turns.len();
    let kept =
        turns.into_iter().enumerate().filter(|(index, turn)| index + 1 == count || turn.last > turn.from + under_way);
    let mut turns: Vec<Turn> = Vec::new();
    for (_, turn) in kept {
        match turns.last_mut() {
            Some(before) if before.by == turn.by => before.last = turn.last,
            _ => turns.push(turn),
        }
    }
    Ok(turns)
}

/// How long after another node's claim a node still spoke, at most. That is no second voice as long as it was under way.
pub fn longest_under_way(words: &[Word]) -> Duration {
    let mut claimed: Option<(Place, Instant)> = None;
    let mut longest = Duration::ZERO;
    for word in words {
        match claimed {
            _ if word.is_claim() => claimed = Some((word.by, word.at)),
            Some((by, at)) if by != word.by => longest = longest.max(word.at.saturating_duration_since(at)),
            _ => {}
        }
    }
    longest
}

fn around(words: &[Word], zero: Instant) -> String {
    let index = words.iter().position(|word| word.at >= zero).unwrap_or_default();
    let near = &words[index.saturating_sub(16)..words.len().min(index + 8)];
    let line = |word: &Word| {
        let after = word.at.saturating_duration_since(zero).as_secs_f64() * 1e3;
        let before = zero.saturating_duration_since(word.at).as_secs_f64() * 1e3;
        format!("\n  {:+8.1} ms  node {} {:?}", after - before, word.by + 1, word.form)
    };
    near.iter().map(line).collect()
}

/// Milliseconds from one time to another, for people.
pub fn ms(from: Instant, to: Instant) -> u128 {
    to.saturating_duration_since(from).as_millis()
}

/// The judge finds what it is to find, and nothing else.
pub fn trial() -> Result<()> {
    use ArpForm::{AnnouncementRequest as Claim, Reply};
    let start = Instant::now();
    let judge = |words: &[(u64, Place, ArpForm)]| -> Result<Vec<Place>> {
        let word = |(at, by, form): &(u64, Place, ArpForm)| Word {
            at: start + Duration::from_millis(*at),
            by: *by,
            form: *form,
        };
        let turns = turns(&words.iter().map(word).collect::<Vec<_>>(), UNDER_WAY)?;
        Ok(turns.iter().map(|turn| turn.by).collect())
    };
    let moved = [(0, 0, Claim), (500, 0, Reply), (900, 1, Claim), (910, 0, Reply), (950, 1, Reply), (2000, 1, Reply)];
    ensure!(judge(&moved)? == [0, 1], "a word that was under way is no second voice");
    let early =
        [(0, 0, Claim), (500, 0, Reply), (1300, 1, Reply), (1350, 1, Reply), (1420, 1, Claim), (2000, 1, Reply)];
    ensure!(judge(&early)? == [0, 1], "its receive path answers a little before it claims");
    let crossed = [(0, 0, Claim), (10, 1, Claim), (12, 1, Reply), (14, 0, Claim), (500, 0, Reply)];
    ensure!(judge(&crossed)? == [0], "who was overruled at once had no turn");
    let second = [(0, 0, Claim), (500, 0, Reply), (900, 1, Claim), (1100, 0, Reply), (1200, 1, Reply)];
    ensure!(judge(&second).is_err(), "the old owner goes on");
    let woken =
        [(0, 0, Claim), (900, 1, Claim), (2000, 1, Reply), (9000, 0, Reply), (9001, 1, Reply), (9100, 0, Claim)];
    ensure!(judge(&woken).is_err(), "who slept answers, and claims only then");
    let silent = [(0, 0, Claim), (500, 0, Reply), (1500, 1, Reply), (9000, 1, Reply)];
    ensure!(judge(&silent).is_err(), "somebody answers and never claims");
    Ok(())
}
