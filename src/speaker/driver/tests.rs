use futures::FutureExt as _;
use prometheus_client::registry::Registry;

use super::*;
use crate::speaker::peers::Peers;

#[tokio::test]
async fn a_loop_that_waits_for_the_kernel_is_not_taken_for_dead() {
    let (health, metrics) = (Health::default(), Metrics::register(&mut Registry::default()));
    let (_watching, links) = netlink::watching(health.clone(), metrics.clone());
    let (_news, news) = mpsc::channel(1);
    let driver = Driver::new(Parts {
        station: Station::new(Arc::new(Peers::new(Arc::from("own"), [])), Duration::from_secs(60)),
        reporter: Arc::new(Reporter::new(Arc::from("own"))),
        heartbeat: Arc::new(Heartbeat::silent_for(2 * STUCK)),
        metrics,
        health: health.clone(),
        links,
        news,
        drain_timeout: Duration::ZERO,
    });
    let mut running = Box::pin(driver.run(std::future::pending()));
    assert!((&mut running).now_or_never().is_none());
    let (status, text) = health.report("/livez").unwrap();
    assert!(status.is_success(), "{text}");
}
