//! What the speakers of three nodes would write: their Leases, and one claim for each address that they are named for.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use futures::StreamExt as _;
use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use l2lb::api::{Claim, ClaimState, Role, VirtualIP, speaker_field_manager, speaker_lease_name};
use serde_json::{Value, json};
use tokio::{
    sync::Semaphore,
    time::{interval, sleep},
};

use crate::world::NAMESPACE;

/// The nodes.
pub const NODES: [&str; 3] = ["node1", "node2", "node3"];
/// As a speaker does.
const RENEW: Duration = Duration::from_secs(5);
const CLAIMS_AT_ONCE: usize = 16;

/// A Speaker object, and its status.
pub fn speaker(node: &str, number: usize) -> (Value, Value) {
    let object = json!({"apiVersion": "l2lb.io/v1alpha1", "kind": "Speaker", "metadata": {"name": node}, "spec": {}});
    let interface = json!({
        "name": "eth0", "mac": mac(node), "addresses": [format!("10.20.0.{}/16", 11 + number)],
        "carrier": true, "defaultRoute": true, "announces": true,
    });
    (object, json!({"status": {"interfaces": [interface], "announcing": "eth0", "draining": false, "version": "test"}}))
}

fn mac(node: &str) -> String {
    format!("02:00:00:00:02:0{}", node.trim_start_matches("node"))
}

/// Renews the Leases of all speakers, for ever.
pub async fn renew_leases(client: Client) {
    let leases: Api<Lease> = Api::namespaced(client, NAMESPACE);
    let mut ticks = interval(RENEW);
    loop {
        ticks.tick().await;
        for node in NODES {
            let name = speaker_lease_name(node);
            let lease = json!({
                "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": {"name": name},
                "spec": {"holderIdentity": node, "leaseDurationSeconds": 15, "renewTime": MicroTime(Timestamp::now())},
            });
            let params = PatchParams::apply(&speaker_field_manager(node)).force();
            if let Err(error) = leases.patch(&name, &params, &Patch::Apply(&lease)).await {
                eprintln!("the Lease of {node} was not renewed: {error}");
            }
        }
    }
}

/// Claims every address for its Primary, once for each placement, for ever.
pub async fn claim(client: Client) {
    let vips: Api<VirtualIP> = Api::all(client);
    let places = Arc::new(Semaphore::new(CLAIMS_AT_ONCE));
    let mut claimed: BTreeMap<String, (String, i64)> = BTreeMap::new();
    let mut events = watcher(vips.clone(), watcher::Config::default()).default_backoff().boxed();
    while let Some(event) = events.next().await {
        let vip = match event {
            Ok(watcher::Event::Apply(vip) | watcher::Event::InitApply(vip)) => vip,
            Ok(watcher::Event::Delete(vip)) => {
                claimed.remove(&vip.name_any());
                continue;
            }
            Ok(_) => continue,
            Err(error) => {
                eprintln!("the test's speakers watch again: {error}");
                continue;
            }
        };
        let Some(primary) = vip.spec.assignments.iter().find(|entry| entry.role == Role::Primary) else { continue };
        let answers = (vip.uid().unwrap_or_default(), vip.spec.placement);
        if claimed.insert(vip.name_any(), answers.clone()) == Some(answers.clone()) {
            continue;
        }
        let (uid, placement) = answers;
        let claim = Claim {
            node: primary.node.clone(),
            interface: primary.interface.clone(),
            mac: mac(&primary.node),
            state: ClaimState::Owner,
            since: Time(Timestamp::now()),
            reason: "test".to_owned(),
            conflict_mac: None,
            uid,
            placement,
        };
        let (vips, places, name) = (vips.clone(), places.clone(), vip.name_any());
        tokio::spawn(async move {
            // Never closed.
            let _place = places.acquire().await;
            while let Err(error) = write(&vips, &name, &claim).await {
                if matches!(&error, kube::Error::Api(status) if matches!(status.code, 404 | 409)) {
                    return; // Gone, or another one by now.
                }
                sleep(Duration::from_millis(200)).await;
            }
        });
    }
}

async fn write(vips: &Api<VirtualIP>, name: &str, claim: &Claim) -> kube::Result<()> {
    let patch = json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP", "metadata": {"name": name, "uid": claim.uid},
        "status": {"claims": [claim]},
    });
    let params = PatchParams::apply(&speaker_field_manager(&claim.node)).force();
    vips.patch_status(name, &params, &Patch::Apply(&patch)).await.map(drop)
}
