//! What changes is told to the watch of its kind.

use super::*;

impl Cluster {
    pub fn service_changed(&mut self, key: &str) {
        let fact = self.truth.services.get(key).cloned();
        let version = self.next_version();
        let shown = self.shown.entry(key.to_owned()).or_default();
        if shown.status.is_null() {
            shown.status = json!({});
        }
        shown.version = version;
        if fact.as_ref().is_none_or(|fact| fact.kind == Kind::ClusterIp)
            && let Some(status) = shown.status.as_object_mut()
        {
            status.remove("loadBalancer"); // The API server does this by itself.
        }
        let input = match &fact {
            Some(_) => Delta::Apply(self.service_view(key)),
            None => {
                let _ = self.shown.remove(key);
                Delta::Delete(key.to_owned(), String::new())
            }
        };
        let key = key.to_owned();
        self.tell(Watch::Service, Input::Service(input), move |known, _| {
            match fact {
                Some(fact) => known.services.insert(key, fact),
                None => known.services.remove(&key),
            };
        });
    }

    pub(super) fn service_view(&self, key: &str) -> ServiceView {
        let shown = &self.shown[key];
        let (_, name) = key.split_once('/').unwrap();
        let object = self.truth.services[key].object(name, shown.version, shown.managed, &shown.status);
        ServiceView::from(&read::<k8s_openapi::api::core::v1::Service>(&object))
    }

    pub fn pool_changed(&mut self, name: &str) {
        let fact = self.truth.pools.get(name).cloned();
        let input = match &fact {
            Some(_) => Delta::Apply(self.pool_view(name)),
            None => {
                self.pool_status.remove(name);
                Delta::Delete(name.to_owned(), String::new())
            }
        };
        let name = name.to_owned();
        self.tell(Watch::Pool, Input::Pool(input), move |known, _| {
            match fact {
                Some(fact) => known.pools.insert(name, fact),
                None => known.pools.remove(&name),
            };
        });
    }

    pub(super) fn pool_view(&self, name: &str) -> PoolView {
        let status = self.pool_status.get(name).cloned().unwrap_or(Value::Null);
        PoolView::from(&read::<IPPool>(&self.truth.pools[name].object(name, &status)))
    }

    pub fn space_changed(&mut self, name: &str) {
        let fact = self.truth.spaces.get(name).copied();
        let input = match fact {
            Some(_) => Delta::Apply(self.space_view(name)),
            None => Delta::Delete(name.to_owned(), String::new()),
        };
        let name = name.to_owned();
        self.tell(Watch::Namespace, Input::Namespace(input), move |known, _| {
            match fact {
                Some(fact) => known.spaces.insert(name, fact),
                None => known.spaces.remove(&name),
            };
        });
    }

    pub(super) fn space_view(&self, name: &str) -> NamespaceView {
        NamespaceView { name: name.to_owned(), labels: read(&labels("env", self.truth.spaces[name])) }
    }

    pub fn node_changed(&mut self, name: &str) {
        let fact = self.truth.nodes.get(name).cloned();
        let input = match &fact {
            Some(_) => Delta::Apply(self.node_view(name)),
            None => Delta::Delete(name.to_owned(), String::new()),
        };
        let name = name.to_owned();
        self.tell(Watch::Node, Input::Node(input), move |known, _| {
            match fact {
                Some(fact) => known.nodes.insert(name, fact),
                None => known.nodes.remove(&name),
            };
        });
    }

    pub(super) fn node_view(&self, name: &str) -> NodeView {
        NodeView::from(&read::<k8s_openapi::api::core::v1::Node>(&self.truth.nodes[name].object(name)))
    }

    pub fn speaker_changed(&mut self, name: &str) {
        let fact = self.truth.speakers.get(name).cloned();
        let input = match &fact {
            Some(_) => Delta::Apply(self.speaker_view(name)),
            None => Delta::Delete(name.to_owned(), String::new()),
        };
        let name = name.to_owned();
        self.tell(Watch::Speaker, Input::Speaker(input), move |known, _| {
            match fact {
                Some(fact) => known.speakers.insert(name, fact),
                None => known.speakers.remove(&name),
            };
        });
    }

    pub(super) fn speaker_view(&self, name: &str) -> SpeakerView {
        let object = self.truth.speakers[name].object(name, self.truth.nodes.get(name));
        SpeakerView::from(&read::<Speaker>(&object))
    }

    pub fn range_changed(&mut self, name: &str) {
        let fact = self.truth.ranges.get(name).copied();
        let input = match fact {
            Some(_) => Delta::Apply(self.range_view(name)),
            None => Delta::Delete(name.to_owned(), String::new()),
        };
        let name = name.to_owned();
        self.tell(Watch::ServiceRange, Input::ServiceRange(input), move |known, _| {
            match fact {
                Some(fact) => known.ranges.insert(name, fact),
                None => known.ranges.remove(&name),
            };
        });
    }

    pub(super) fn range_view(&self, name: &str) -> ServiceRangeView {
        let cidrs = [pair(self.truth.ranges[name]), "10.96.0.0/16".to_owned()];
        let object = json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } });
        ServiceRangeView::from(&read::<k8s_openapi::api::networking::v1::ServiceCIDR>(&object))
    }

    pub fn slice_changed(&mut self, service: &str, part: u8) {
        let id = (service.to_owned(), part);
        let fact = self.truth.slices.get(&id).cloned();
        let input = match &fact {
            Some(_) => Delta::Apply(self.slice_view(service, part)),
            None => Delta::Delete(format!("{service}-{part}"), String::new()),
        };
        self.tell(Watch::Slice, Input::Slice(input), move |known, _| {
            match fact {
                Some(fact) => known.slices.insert(id, fact),
                None => known.slices.remove(&id),
            };
        });
    }

    pub(super) fn slice_view(&self, service: &str, part: u8) -> SliceView {
        let object = slice_object(service, part, &self.truth.slices[&(service.to_owned(), part)]);
        SliceView::read(&read::<k8s_openapi::api::discovery::v1::EndpointSlice>(&object)).unwrap()
    }
}
