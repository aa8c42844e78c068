//! What the fake API server knows: objects, and what became of them, oldest news first. Pure: no clock, no connection.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use serde_json::{Value, json};

/// News that are kept. Who asks for older ones is told 410 Gone and lists anew.
const KEPT: usize = 50_000;

/// A kind that is served.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Resource {
    pub(super) plural: &'static str,
    pub(super) kind: &'static str,
    pub(super) api_version: &'static str,
    pub(super) namespaced: bool,
}

/// What a speaker and its tests speak of.
pub(super) const RESOURCES: [Resource; 4] = [
    Resource { plural: "virtualips", kind: "VirtualIP", api_version: "l2lb.io/v1alpha1", namespaced: false },
    Resource { plural: "speakers", kind: "Speaker", api_version: "l2lb.io/v1alpha1", namespaced: false },
    Resource { plural: "ippools", kind: "IPPool", api_version: "l2lb.io/v1alpha1", namespaced: false },
    Resource { plural: "leases", kind: "Lease", api_version: "coordination.k8s.io/v1", namespaced: true },
];

/// Which object: its kind, and `name` or `namespace/name`.
pub(super) type Key = (&'static str, String);

/// An object as it stood at one version.
#[derive(Debug)]
pub(super) struct Stored {
    pub(super) value: Value,
    pub(super) json: String,
}

impl Stored {
    fn new(value: Value) -> Arc<Self> {
        Arc::new(Self { json: value.to_string(), value })
    }
}

/// One change.
#[derive(Debug)]
struct Event {
    plural: &'static str,
    before: Option<Arc<Stored>>,
    /// Of a deletion: the object as it was last, with the version of the deletion.
    after: Arc<Stored>,
    deleted: bool,
}

/// Why a write was refused. Nothing was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Refused {
    /// There is no such object.
    NotFound,
    /// The object has another uid than the one written about.
    OtherUid,
}

/// The store. Versions count from 1, one for each change.
#[derive(Debug, Default)]
pub(super) struct Store {
    objects: BTreeMap<Key, Arc<Stored>>,
    log: VecDeque<Event>,
    version: u64,
    uids: u64,
}

impl Store {
    pub(super) fn version(&self) -> u64 {
        self.version
    }

    pub(super) fn get(&self, plural: &'static str, name: &str) -> Option<&Arc<Stored>> {
        self.objects.get(&(plural, name.to_owned()))
    }

    /// Objects of a kind with such labels whose name comes after `after`, by name.
    pub(super) fn list<'a>(
        &'a self,
        plural: &'static str,
        after: &str,
        selector: &'a Selector,
    ) -> impl Iterator<Item = (&'a str, &'a Arc<Stored>)> {
        let begin = (std::ops::Bound::Excluded((plural, after.to_owned())), std::ops::Bound::Unbounded);
        let of_kind = self.objects.range(begin).take_while(move |((kind, _), _)| *kind == plural);
        of_kind.filter(|(_, stored)| selector.matches(&stored.value)).map(|((_, name), stored)| (name.as_str(), stored))
    }

    /// Makes the object what it says, whatever it was; keeps its uid.
    pub(super) fn put(&mut self, resource: Resource, name: &str, mut value: Value) {
        let before = self.get(resource.plural, name).map(|stored| stored.value["metadata"].clone());
        let before = before.unwrap_or_else(|| self.first_metadata());
        value["apiVersion"] = json!(resource.api_version);
        value["kind"] = json!(resource.kind);
        for field in ["uid", "creationTimestamp"] {
            value["metadata"][field] = before[field].clone();
        }
        self.store(resource.plural, name, value);
    }

    /// Server-side apply by one manager, as far as a speaker needs it. Of a status: claims are a map by node, all the rest is
    /// what was written last. Of an object: it is made if it is not there; labels are added, the spec is replaced.
    pub(super) fn apply(
        &mut self,
        resource: Resource,
        name: &str,
        status: bool,
        mut patch: Value,
    ) -> Result<Arc<Stored>, Refused> {
        let before = self.get(resource.plural, name).map(|stored| stored.value.clone());
        let mut value = match before {
            Some(value) => value,
            None if status => return Err(Refused::NotFound),
            None => {
                let (namespace, own) = name.split_once('/').map_or((None, name), |(space, own)| (Some(space), own));
                let mut metadata = self.first_metadata();
                metadata["name"] = json!(own);
                if let Some(namespace) = namespace {
                    metadata["namespace"] = json!(namespace);
                }
                json!({"apiVersion": resource.api_version, "kind": resource.kind, "metadata": metadata})
            }
        };
        let uid = &patch["metadata"]["uid"];
        if !uid.is_null() && *uid != value["metadata"]["uid"] {
            return Err(Refused::OtherUid);
        }
        if status {
            let claims = merged(value["status"]["claims"].take(), patch["status"]["claims"].take());
            value["status"] = patch["status"].take();
            if let Some(claims) = claims {
                value["status"]["claims"] = claims;
            }
        } else {
            if let Some(labels) = patch["metadata"]["labels"].as_object() {
                for (key, label) in labels {
                    value["metadata"]["labels"][key] = label.clone();
                }
            }
            if !patch["spec"].is_null() {
                value["spec"] = patch["spec"].take();
            }
        }
        Ok(self.store(resource.plural, name, value))
    }

    /// Whether it was there.
    pub(super) fn delete(&mut self, plural: &'static str, name: &str) -> bool {
        let Some(before) = self.objects.remove(&(plural, name.to_owned())) else { return false };
        self.version += 1;
        let mut value = before.value.clone();
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        self.tell(Event { plural, before: Some(before), after: Stored::new(value), deleted: true });
        true
    }

    /// At most `limit` news of a kind since `version`, as the lines of a watch, and the version up to which they tell. `None`:
    /// that is too long ago.
    pub(super) fn news(
        &self,
        plural: &'static str,
        version: u64,
        selector: &Selector,
        limit: usize,
    ) -> Option<(String, u64)> {
        let first = self.version - self.log.len() as u64;
        let skip = usize::try_from(version.checked_sub(first)?).ok()?;
        let (mut lines, mut told, mut count) = (String::new(), version, 0);
        for event in self.log.iter().skip(skip) {
            if count == limit {
                break;
            }
            told += 1;
            if event.plural == plural
                && let Some(word) = event.word(selector)
            {
                count += 1;
                lines.extend([r#"{"type":""#, word, r#"","object":"#, &event.after.json, "}\n"]);
            }
        }
        Some((lines, told.max(version)))
    }

    fn first_metadata(&mut self) -> Value {
        self.uids += 1;
        json!({"uid": format!("00000000-0000-4000-8000-{:012}", self.uids), "creationTimestamp": "2025-01-01T00:00:00Z"})
    }

    fn store(&mut self, plural: &'static str, name: &str, mut value: Value) -> Arc<Stored> {
        self.version += 1;
        value["metadata"]["resourceVersion"] = json!(self.version.to_string());
        let after = Stored::new(value);
        let before = self.objects.insert((plural, name.to_owned()), after.clone());
        self.tell(Event { plural, before, after: after.clone(), deleted: false });
        after
    }

    fn tell(&mut self, event: Event) {
        self.log.push_back(event);
        if self.log.len() > KEPT {
            self.log.pop_front();
        }
    }
}

impl Event {
    /// What it is for who sees only what the selector lets through.
    fn word(&self, selector: &Selector) -> Option<&'static str> {
        let was = self.before.as_ref().is_some_and(|before| selector.matches(&before.value));
        let is = !self.deleted && selector.matches(&self.after.value);
        match (was, is) {
            (false, true) => Some("ADDED"),
            (true, true) => Some("MODIFIED"),
            (true, false) => Some("DELETED"),
            (false, false) => None,
        }
    }
}

/// Lists of claims, of which each node has one: the younger ones win.
fn merged(older: Value, younger: Value) -> Option<Value> {
    let (Value::Array(younger), older) = (younger, older) else { return None };
    let Value::Array(mut claims) = older else { return Some(Value::Array(younger)) };
    for claim in younger {
        match claims.iter_mut().find(|other| other["node"] == claim["node"]) {
            Some(other) => *other = claim,
            None => claims.push(claim),
        }
    }
    Some(Value::Array(claims))
}

/// A label selector: `key`, `key=value` or `key==value`, separated by commas.
#[derive(Clone, Debug, Default)]
pub(super) struct Selector(Vec<(String, Option<String>)>);

impl Selector {
    /// `None`: it asks for something that is not understood here.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let wanted = text.split(',').map(str::trim).filter(|part| !part.is_empty()).map(|part| {
            let (key, value) = match part.split_once('=') {
                Some((key, value)) => (key, Some(value.trim_start_matches('=').trim().to_owned())),
                None => (part, None),
            };
            let key = key.trim();
            (!key.contains(['!', ' ', '(', '<', '>'])).then(|| (key.to_owned(), value))
        });
        wanted.collect::<Option<_>>().map(Self)
    }

    fn matches(&self, value: &Value) -> bool {
        let labels = &value["metadata"]["labels"];
        self.0.iter().all(|(key, wanted)| match (labels[key].as_str(), wanted) {
            (Some(label), Some(wanted)) => label == wanted,
            (Some(_), None) => true,
            (None, _) => false,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const VIPS: Resource = RESOURCES[0];

    fn vip(name: &str, node: &str) -> Value {
        json!({"metadata": {"name": name, "labels": {format!("node.l2lb.io/{node}"): "primary"}}, "spec": {"pool": "lan"}})
    }

    fn selector(text: &str) -> Selector {
        Selector::parse(text).unwrap()
    }

    #[test]
    fn a_watch_sees_only_what_its_selector_lets_through() {
        let (mut store, mine) = (Store::default(), selector("node.l2lb.io/a"));
        store.put(VIPS, "192.0.2.1", vip("192.0.2.1", "a"));
        store.put(VIPS, "192.0.2.2", vip("192.0.2.2", "b"));
        assert_eq!(store.list("virtualips", "", &mine).map(|(name, _)| name).collect::<Vec<_>>(), ["192.0.2.1"]);
        let words = |store: &Store, since| {
            let (lines, told) = store.news("virtualips", since, &mine, 100).unwrap();
            let lines = lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
            (lines.map(|line| line["type"].as_str().unwrap().to_owned()).collect::<Vec<_>>(), told)
        };
        assert_eq!(words(&store, 0), (vec!["ADDED".to_owned()], 2));
        // The label goes: for this watch the object is gone.
        store.put(VIPS, "192.0.2.1", vip("192.0.2.1", "b"));
        store.put(VIPS, "192.0.2.2", vip("192.0.2.2", "a"));
        store.delete("virtualips", "192.0.2.2");
        let of_a_later_one = ["DELETED", "ADDED", "DELETED"].map(str::to_owned).to_vec();
        assert_eq!(words(&store, 2), (of_a_later_one, 5));
        assert_eq!(words(&store, 5), (vec![], 5));
    }

    #[test]
    fn claims_are_kept_by_node() {
        let mut store = Store::default();
        store.put(VIPS, "192.0.2.1", vip("192.0.2.1", "a"));
        let uid = store.get("virtualips", "192.0.2.1").unwrap().value["metadata"]["uid"].clone();
        let claim = |node: &str, state: &str| json!({"metadata": {"uid": uid}, "status": {"claims": [{"node": node, "state": state}]}});
        for (node, state) in [("a", "Probing"), ("b", "Yielded"), ("a", "Owner")] {
            store.apply(VIPS, "192.0.2.1", true, claim(node, state)).unwrap();
        }
        let claims = &store.get("virtualips", "192.0.2.1").unwrap().value["status"]["claims"];
        assert_eq!(*claims, json!([{"node": "a", "state": "Owner"}, {"node": "b", "state": "Yielded"}]));
        let foreign = json!({"metadata": {"uid": "another"}, "status": {"claims": []}});
        assert_eq!(store.apply(VIPS, "192.0.2.1", true, foreign).unwrap_err(), Refused::OtherUid);
        assert_eq!(store.apply(VIPS, "192.0.2.9", true, json!({})).unwrap_err(), Refused::NotFound);
    }

    #[test]
    fn an_object_keeps_its_uid_until_it_is_deleted() {
        let mut store = Store::default();
        let uid = |store: &Store| store.get("virtualips", "192.0.2.1").unwrap().value["metadata"]["uid"].clone();
        store.put(VIPS, "192.0.2.1", vip("192.0.2.1", "a"));
        let first = uid(&store);
        store.put(VIPS, "192.0.2.1", vip("192.0.2.1", "b"));
        assert_eq!(uid(&store), first);
        assert!(store.delete("virtualips", "192.0.2.1") && !store.delete("virtualips", "192.0.2.1"));
        store.put(VIPS, "192.0.2.1", vip("192.0.2.1", "b"));
        assert_ne!(uid(&store), first);
    }

    #[test]
    fn news_that_are_forgotten_are_not_made_up() {
        let mut store = Store::default();
        for _ in 0..KEPT + 10 {
            store.put(VIPS, "192.0.2.1", vip("192.0.2.1", "a"));
        }
        assert!(store.news("virtualips", 9, &Selector::default(), 1).is_none());
        assert!(store.news("virtualips", 10, &Selector::default(), 1).is_some());
        assert!(Selector::parse("a in (b)").is_none());
    }
}
