//! What the controller watches: each kind, reduced at the door to the view that is kept of it.

use std::{fmt::Debug, future::ready, time::Duration};

use futures::{
    StreamExt as _,
    stream::{BoxStream, SelectAll},
};
use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Namespace, Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use kube::{Api, Client, Resource, ResourceExt as _, core::PartialObjectMeta, runtime::watcher};
use serde::de::DeserializeOwned;

use super::{
    index::{Delta, Input},
    view::{
        LeaseView, NamespaceView, NodeView, PoolView, ServiceRangeView, ServiceView, SliceView, SpeakerView,
        VirtualIPView,
    },
};
use crate::{
    api::{IPPool, Speaker, VirtualIP},
    retry::causes,
    watching::{self, Limits},
};

/// Leases are renewed each 5 s. A watch of them that says nothing for this long may be deaf, and its silence would call every speaker
/// dead at 15 s: they are listed again, and if that does not work in time either, silence means nothing.
const LEASES_SILENT: Duration = Duration::from_secs(8);
const LEASES_TIMEOUT: Duration = Duration::from_secs(5);

/// What a watch delivers.
pub(super) enum News {
    Input(&'static str, Box<Input>),
    Broken(&'static str, WatchFault),
}

/// All kinds that are watched.
pub(super) const KINDS: [&str; 9] =
    ["Service", "EndpointSlice", "Node", "Namespace", "IPPool", "VirtualIP", "Speaker", "Lease", "ServiceCIDR"];

/// A watch of each kind.
pub(super) fn watches(client: &Client, namespace: &str) -> SelectAll<BoxStream<'static, News>> {
    let all = || client.clone();
    let mut news = SelectAll::new();
    news.push(watch_kind(Api::<Service>::all(all()), "Service", |o| Some(ServiceView::from(o)), Input::Service));
    news.push(watch_kind(Api::<EndpointSlice>::all(all()), "EndpointSlice", SliceView::read, Input::Slice));
    news.push(watch_kind(Api::<Node>::all(all()), "Node", |o| Some(NodeView::from(o)), Input::Node));
    let namespaces = Api::<PartialObjectMeta<Namespace>>::all(all());
    news.push(watch_kind(namespaces, "Namespace", |o| Some(NamespaceView::from(&o.metadata)), Input::Namespace));
    news.push(watch_kind(Api::<IPPool>::all(all()), "IPPool", |o| Some(PoolView::from(o)), Input::Pool));
    news.push(watch_kind(Api::<VirtualIP>::all(all()), "VirtualIP", VirtualIPView::read, Input::VirtualIP));
    news.push(watch_kind(Api::<Speaker>::all(all()), "Speaker", |o| Some(SpeakerView::from(o)), Input::Speaker));
    let leases = Api::<Lease>::namespaced(all(), namespace);
    news.push(watch_kind(leases, "Lease", LeaseView::read, Input::Lease));
    let service_ranges = Api::<ServiceCIDR>::all(all());
    news.push(watch_kind(service_ranges, "ServiceCIDR", |o| Some(ServiceRangeView::from(o)), Input::ServiceRange));
    news
}

/// Watches one kind, with backoff. A list is delivered whole, so that nobody ever sees half of one.
fn watch_kind<K, V>(
    api: Api<K>,
    kind: &'static str,
    read: fn(&K) -> Option<V>,
    input: fn(Delta<V>) -> Input,
) -> BoxStream<'static, News>
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
    V: Send + 'static,
{
    let limits = match kind {
        "Lease" => Limits { listing: LEASES_TIMEOUT, watching: Some(LEASES_SILENT) },
        _ => Limits::default(),
    };
    let mut listed = Vec::new();
    let news = watching::watch(api, watcher::Config::default(), limits).filter_map(move |event| {
        let delta = match event {
            None => {
                let seconds = limits.listing.as_secs();
                let fault = WatchFault::Unreachable(format!("the list of {kind} is not answered within {seconds} s"));
                return ready(Some(News::Broken(kind, fault)));
            }
            Some(Err(error)) => return ready(Some(News::Broken(kind, watch_fault(kind, &error)))),
            Some(Ok(watcher::Event::Init)) => {
                listed.clear();
                None
            }
            Some(Ok(watcher::Event::InitApply(object))) => {
                listed.extend(read(&object));
                None
            }
            Some(Ok(watcher::Event::InitDone)) => Some(Delta::Reset(std::mem::take(&mut listed))),
            Some(Ok(watcher::Event::Apply(object))) => Some(change_of(&object, read)),
            Some(Ok(watcher::Event::Delete(object))) => Some(end_of(&object)),
        };
        ready(delta.map(|delta| News::Input(kind, Box::new(input(delta)))))
    });
    news.boxed()
}

/// What a new state of an object says. It may be none of ours any more: a slice whose label was removed, say.
fn change_of<K: Resource, V>(object: &K, read: fn(&K) -> Option<V>) -> Delta<V> {
    read(object).map_or_else(|| end_of(object), Delta::Apply)
}

fn end_of<K: Resource, V>(object: &K) -> Delta<V> {
    let name = object.name_any();
    let key = object.namespace().map_or_else(|| name.clone(), |namespace| format!("{namespace}/{name}"));
    Delta::Delete(key, object.uid().unwrap_or_default())
}

/// Why a watch broke, for the log.
pub(super) enum WatchFault {
    /// It has to list again: that is no fault of anybody.
    Behind,
    /// There is no such kind.
    Unknown(String),
    /// The API server says no.
    Refused(String),
    /// There is no API server to say anything; all watches say the same then.
    Unreachable(String),
}

/// The HTTP status that the API server answered with, or 0 if it did not.
fn error_code(error: &watcher::Error) -> u16 {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchFailed(kube::Error::Api(status)) => status.code,
        watcher::Error::WatchError(status) => status.code,
        _ => 0,
    }
}

fn watch_fault(kind: &str, error: &watcher::Error) -> WatchFault {
    match error_code(error) {
        410 => WatchFault::Behind,
        404 => WatchFault::Unknown(format!(
            "the API server does not know the kind {kind}: install the CustomResourceDefinitions \
             (l2lb crds | kubectl apply -f -); trying again"
        )),
        403 => WatchFault::Refused(format!(
            "the controller may not list and watch {kind}: check its ClusterRole and Role ({error}); trying again"
        )),
        0 => WatchFault::Unreachable(format!(
            "the API server cannot be reached: {}; trying again, nothing is withdrawn meanwhile",
            causes(error)
        )),
        _ => WatchFault::Refused(format!(
            "{kind} cannot be watched: {error}; trying again, nothing is withdrawn meanwhile"
        )),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::controller::view::SliceView;

    #[test]
    fn an_object_that_is_none_of_ours_any_more_is_gone() {
        let mut slice = json!({
            "metadata": {
                "name": "web-1", "namespace": "default", "uid": "uid-1", "labels": { "kubernetes.io/service-name": "web" },
            },
            "addressType": "IPv4", "endpoints": [],
        });
        let read = |slice: &serde_json::Value| -> EndpointSlice { serde_json::from_value(slice.clone()).unwrap() };
        assert!(
            matches!(change_of(&read(&slice), SliceView::read), Delta::Apply(view) if view.service == "default/web")
        );
        slice["metadata"]["labels"] = json!({});
        let gone = Delta::Delete("default/web-1".to_owned(), "uid-1".to_owned());
        assert_eq!(change_of(&read(&slice), SliceView::read), gone);
    }
}
