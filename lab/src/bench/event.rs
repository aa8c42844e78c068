//! What is done to the owner of the address, and what is promised of it.

use std::fmt;
use std::time::Duration;

use clap::ValueEnum;

/// What happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub enum Event {
    /// Nothing: what the machine itself adds to every figure.
    Nothing,
    /// The node loses its power.
    PowerOff,
    /// The switch forwards nothing from or to the node's port; the NIC keeps its carrier.
    PortDown,
    /// The NIC loses its carrier.
    CarrierLost,
    /// The speaker is killed (SIGKILL), its node lives.
    Killed,
    /// The speaker is told to end (SIGTERM).
    Ended,
    /// The node is drained by annotation.
    Drained,
    /// All speakers are restarted, one after the other.
    Rolled,
    /// The controller names another primary, since the node is excluded.
    Moved,
    /// The speaker stands still for 12 s and goes on.
    Paused,
    /// Owner and one client are cut off from the rest of the LAN for 30 s.
    Partitioned,
}

impl Event {
    /// Half a minute or more for each run.
    pub(super) fn is_slow(self) -> bool {
        matches!(self, Self::Paused | Self::Partitioned)
    }
}

/// How fast the standbys doubt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// Each 200 ms.
    Standard,
    /// Each 50 ms.
    Fast,
}

/// An event under certain circumstances.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Case {
    pub(super) event: Event,
    /// Only l2lb has these.
    pub(super) class: Option<Class>,
    /// API server and controllers are dead at the time.
    pub(super) headless: bool,
    /// `externalTrafficPolicy: Local`.
    pub(super) local: bool,
}

/// What is promised to a client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Promise {
    Nothing,
    /// The 99th percentile of the gap.
    Gap(Duration),
    NoLoss,
    /// Time until there is one owner.
    OneOwner(Duration),
}

impl Case {
    pub(super) fn of(event: Event) -> Self {
        Self { event, class: None, headless: false, local: false }
    }

    /// All events that a subject can be struck by but these, one case each.
    pub(super) fn all_but(others: &[Event]) -> Vec<Self> {
        let events = Event::value_variants().iter().filter(|event| **event != Event::Nothing);
        events.filter(|event| !others.contains(event)).copied().map(Self::of).collect()
    }

    /// What l2lb promises.
    pub(super) fn promise(&self) -> Promise {
        match self.event {
            Event::Nothing | Event::Killed | Event::Ended | Event::Drained | Event::Rolled | Event::Moved => {
                Promise::NoLoss
            }
            Event::PowerOff | Event::PortDown | Event::CarrierLost => match self.class {
                Some(Class::Standard) => Promise::Gap(Duration::from_millis(1000)),
                Some(Class::Fast) => Promise::Gap(Duration::from_millis(300)),
                None => Promise::Nothing,
            },
            Event::Paused => Promise::NoLoss,
            Event::Partitioned => Promise::OneOwner(Duration::from_millis(1200)),
        }
    }

    /// Whether the address is with another node afterwards, whatever the subject does well.
    pub(super) fn moves(&self) -> bool {
        !matches!(self.event, Event::Nothing | Event::Killed | Event::Rolled | Event::Paused | Event::Partitioned)
    }

    /// A word for files.
    pub(super) fn key(&self) -> String {
        let event = self.event.to_possible_value().map_or_else(String::new, |value| value.get_name().to_owned());
        let class = self.class.map(|class| format!("-{class:?}").to_lowercase()).unwrap_or_default();
        let headless = if self.headless { "-headless" } else { "" };
        format!("{event}{class}{headless}{}", if self.local { "-local" } else { "" })
    }
}

impl fmt::Display for Case {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let event = match self.event {
            Event::Nothing => "nothing happens, for 3 s",
            Event::PowerOff => "node powered off",
            Event::PortDown => "switch port blocked",
            Event::CarrierLost => "carrier lost",
            Event::Killed => "speaker killed, node alive",
            Event::Ended => "speaker told to end (SIGTERM)",
            Event::Drained => "node drained",
            Event::Rolled => "rolling restart",
            Event::Moved => "primary moved",
            Event::Paused => "owner paused 12 s, resumed",
            Event::Partitioned => "LAN partitioned 30 s, healed",
        };
        f.write_str(event)?;
        if let Some(class) = self.class {
            write!(f, ", {class:?}")?;
        }
        if self.headless {
            f.write_str(", API server and controller dead")?;
        }
        if self.local {
            f.write_str(", policy Local")?;
        }
        Ok(())
    }
}
