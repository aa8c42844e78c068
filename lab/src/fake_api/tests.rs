use std::collections::BTreeSet;
use std::time::Duration;

use futures::{Stream, StreamExt as _, TryStreamExt as _};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, Patch, PatchParams};
use kube::runtime::watcher::{self, Event, watcher};
use kube::{Api, Client, Config, ResourceExt as _};

use super::*;

const OBJECTS: usize = 5000;
const PATIENCE: Duration = Duration::from_secs(60);

/// Every second one is node a's.
fn vip(number: usize, node: &str) -> Value {
    let name = format!("10.0.{}.{}", number / 250, number % 250);
    let label = format!("node.l2lb.io/{node}");
    json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP", "spec": {"address": name, "pool": "lan"},
        "metadata": {"name": name, "labels": {label: "primary"}},
    })
}

async fn next<S>(events: &mut S) -> Result<Event<DynamicObject>>
where
    S: Stream<Item = watcher::Result<Event<DynamicObject>>> + Unpin,
{
    let event = tokio::time::timeout(PATIENCE, events.try_next()).await.context("no event in time")??;
    event.context("the watch ended")
}

/// All that a real client does with it, at the size that is promised.
#[test]
fn a_real_client_lists_watches_and_applies() -> Result<()> {
    let api = FakeApi::new();
    for number in 0..OBJECTS {
        api.put(&vip(number, if number % 2 == 0 { "a" } else { "b" }))?;
    }
    let door = api.door(TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?)?;
    runtime::block_on(async {
        let client = Client::try_from(Config::new(format!("http://{}", door.address()).parse()?))?;
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("l2lb.io", "v1alpha1", "VirtualIP"));
        let vips = Api::<DynamicObject>::all_with(client.clone(), &kind);
        let config = watcher::Config::default().labels("node.l2lb.io/a").page_size(100).timeout(60);
        let mut events = watcher(vips.clone(), config).boxed();

        let mut listed = BTreeSet::new();
        anyhow::ensure!(matches!(next(&mut events).await?, Event::Init));
        while let Event::InitApply(object) = next(&mut events).await? {
            listed.insert(object.name_any());
        }
        anyhow::ensure!(listed.len() == OBJECTS / 2, "{} of {OBJECTS} listed", listed.len());

        api.put(&vip(1, "a"))?;
        anyhow::ensure!(matches!(next(&mut events).await?, Event::Apply(object) if object.name_any() == "10.0.0.1"));
        api.put(&vip(1, "b"))?;
        anyhow::ensure!(matches!(next(&mut events).await?, Event::Delete(object) if object.name_any() == "10.0.0.1"));

        let object = vips.get("10.0.0.0").await?;
        let claim = json!({
            "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP", "metadata": {"name": "10.0.0.0", "uid": object.uid()},
            "status": {"claims": [{"node": "a", "state": "Owner"}]},
        });
        let params = PatchParams::apply("test").force();
        vips.patch_status("10.0.0.0", &params, &Patch::Apply(&claim)).await?;
        anyhow::ensure!(matches!(next(&mut events).await?, Event::Apply(object) if object.name_any() == "10.0.0.0"));
        anyhow::ensure!(api.claim("10.0.0.0", "a").is_some_and(|claim| claim["state"] == "Owner"));

        // A door that is closed ends the watch; what happened meanwhile is told when it is open again.
        door.set_open(false);
        let broken = tokio::time::timeout(PATIENCE, events.next()).await.context("the watch goes on")?;
        anyhow::ensure!(matches!(broken, Some(Err(_))), "{broken:?}");
        anyhow::ensure!(vips.get("10.0.0.0").await.is_err(), "a closed door answers");
        api.delete("virtualips", "10.0.0.2");
        door.set_open(true);
        let deleted = loop {
            if let Some(Ok(event)) = tokio::time::timeout(PATIENCE, events.next()).await.context("no event in time")? {
                break event;
            }
        };
        anyhow::ensure!(matches!(&deleted, Event::Delete(object) if object.name_any() == "10.0.0.2"), "{deleted:?}");
        Ok(())
    })
}
