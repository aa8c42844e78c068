//! How long to wait before the API server is asked again: one rule for all watches and writes of both roles.

use std::time::Duration;

use backon::ExponentialBuilder;
use kube::runtime::watcher::ExponentialBackoff;

/// The first wait.
const SHORTEST: Duration = Duration::from_millis(400);
/// The longest, before the jitter that may double it. Kubernetes' own clients go up to 30 s; a load balancer that is still
/// waiting a minute after the API server came back would be the reason why a new Service has no address.
const LONGEST: Duration = Duration::from_secs(5);

/// An endless row of waits, each longer than the one before, with jitter so that a cluster's speakers do not come all at once.
pub fn backoff() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(SHORTEST)
        .with_max_delay(LONGEST)
        .with_factor(2.0)
        .with_jitter()
        .without_max_times()
        .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_never_ends_and_never_waits_longer_than_promised() {
        let waits: Vec<Duration> = backoff().take(100).collect();
        assert_eq!(waits.len(), 100);
        assert!(waits.iter().all(|wait| (SHORTEST..=LONGEST * 2).contains(wait)), "{waits:?}");
    }
}
