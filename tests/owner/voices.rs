//! Who spoke for a virtual IP, read off the recorded frames, and whether there was one voice.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::lan::RecordedFrame;
use lab::lan::frame::ArpForm;
use lab::lan::said;
use lab::stalls::NoExcuse;

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

/// A tie between two that took over at once is over.
pub const TIE: Duration = Duration::from_secs(1);

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
        ensure!(words.iter().all(|(_, honest)| *honest), NoExcuse(format!("a frame for {vip} lied about who sent it")));
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

    /// Fails if two spoke at once, or, where the machine had time for everybody, if anybody else than `by` spoke after `since`.
    pub fn expect_only(&self, vip: Ipv4Addr, since: Instant, by: Place) -> Result<()> {
        self.turns(vip)?;
        let spoke = self.speakers_since(vip, since)?;
        ensure!(
            spoke.iter().eq([&by]) || !self.is_calm_since(since),
            "nodes {spoke:?} spoke for {vip}, and not {by} alone\n{}",
            self.report()
        );
        Ok(())
    }

    /// Fails if two spoke at once, or, where the machine had time for everybody, if `lost` spoke after `since`, or if more than one speak
    /// when a tie is over, after another took over at `at`: of two standbys that claim at once the better one keeps the address.
    pub fn expect_one(&self, vip: Ipv4Addr, since: Instant, at: Instant, lost: Place) -> Result<()> {
        self.turns(vip)?;
        let (spoke, speak) = (self.speakers_since(vip, since)?, self.speakers_since(vip, at + TIE)?);
        let is_right = !spoke.contains(&lost) && speak.len() <= 1;
        ensure!(
            is_right || !self.is_calm_since(since),
            "nodes {spoke:?} spoke for {vip}, and {speak:?} still do; node {lost} was lost\n{}",
            self.report()
        );
        Ok(())
    }

    /// The turns in which nodes spoke for an address, with a report when two spoke at once; see [`turns`].
    pub fn turns(&self, vip: Ipv4Addr) -> Result<Vec<Turn>> {
        let under_way = |claimed, spoke| UNDER_WAY + self.stalled_within(claimed, spoke);
        turns(&self.words(vip)?, under_way).with_context(|| format!("{vip}\n{}", self.report()))
    }
}

/// What was said by others than who has the word, with the time since that one claimed. Who claimed last has the word (before the
/// first claim: who spoke first). That another one answers a moment before it claims in its turn does not count if the first has
/// fallen silent by then: its receive path answers as soon as it owns.
pub fn strays(words: &[Word]) -> Vec<(Word, Duration)> {
    let mut strays = Vec::new();
    let Some(mut owner) = words.first() else { return strays };
    for (index, word) in words.iter().enumerate() {
        if word.is_claim() {
            owner = if owner.by == word.by { owner } else { word };
        } else if owner.by != word.by {
            let rest = &words[index..];
            let next = rest.iter().position(Word::is_claim);
            let begins = next.is_some_and(|next| rest[..=next].iter().all(|later| later.by == word.by));
            if !begins {
                strays.push((*word, word.at.saturating_duration_since(owner.at)));
            }
        }
    }
    strays
}

/// The turns in which nodes spoke. What another one says later than `under_way` after the claim of who has the word, for a claim and
/// a word at these times, is a second voice.
///
/// # Errors
/// [`NoExcuse`] when two spoke at once, with what was said around it: how long the machine stood still is in `under_way`.
pub fn turns(words: &[Word], under_way: impl Fn(Instant, Instant) -> Duration) -> Result<Vec<Turn>> {
    let is_second =
        |(word, after): &(Word, Duration)| *after > under_way(word.at.checked_sub(*after).unwrap_or(word.at), word.at);
    let second = strays(words).into_iter().find(is_second);
    if let Some((second, _)) = second {
        return Err(NoExcuse(format!("two answered at once:{}", around(words, second.at))).into());
    }
    let mut turns: Vec<Turn> = Vec::new();
    for word in words {
        match turns.last_mut() {
            Some(turn) if turn.by == word.by => turn.last = word.at,
            Some(_) if !word.is_claim() => {}
            _ => turns.push(Turn { by: word.by, from: word.at, last: word.at }),
        }
    }
    // Where claims crossed, the one that was overruled had no turn.
    let last = turns.last().copied();
    let mut kept: Vec<Turn> = Vec::new();
    for turn in
        turns.into_iter().filter(|turn| Some(*turn) == last || turn.last > turn.from + under_way(turn.from, turn.last))
    {
        match kept.last_mut() {
            Some(before) if before.by == turn.by => before.last = turn.last,
            _ => kept.push(turn),
        }
    }
    Ok(kept)
}

/// How long after another node's claim a node still spoke, at most. That is no second voice as long as it was under way.
pub fn longest_under_way(words: &[Word]) -> Duration {
    strays(words).into_iter().map(|(_, after)| after).max().unwrap_or_default()
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
        let turns = turns(&words.iter().map(word).collect::<Vec<_>>(), |_, _| UNDER_WAY)?;
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
    ensure!(
        judge(&second).is_err_and(|error| NoExcuse::is_in(&error.context("with a report"))),
        "the old owner goes on"
    );
    let woken =
        [(0, 0, Claim), (900, 1, Claim), (2000, 1, Reply), (9000, 0, Reply), (9001, 1, Reply), (9100, 0, Claim)];
    ensure!(judge(&woken).is_err(), "who slept answers, and claims only then");
    let silent = [(0, 0, Claim), (500, 0, Reply), (1500, 1, Reply), (9000, 1, Reply)];
    ensure!(judge(&silent).is_err(), "somebody answers and never claims");
    Ok(())
}
