//! One kind of object, as far as it has been seen.

use std::collections::{BTreeMap, BTreeSet};

use crate::controller::view::View;

/// What a watch says.
#[derive(Clone, Debug, PartialEq)]
pub enum Delta<V> {
    /// An object was made or changed.
    Apply(V),
    /// An object is gone: its key and uid.
    Delete(String, String),
    /// These are all objects there are.
    Reset(Vec<V>),
}

/// All objects of a kind. Old news is ignored: a state older than the one that is known, the end of an earlier object of the
/// same name. A reset is believed as to which objects there are; of one that was written after it was listed, the later state is kept.
#[derive(Debug)]
pub(super) struct Table<V> {
    /// Boxed: a tree that grows has room for almost twice what it holds.
    views: BTreeMap<String, Box<V>>,
    synced: bool,
}

impl<V> Default for Table<V> {
    fn default() -> Self {
        Self { views: BTreeMap::new(), synced: false }
    }
}

impl<V: View> Table<V> {
    /// Takes the news in and returns the keys of all objects that are not what they were.
    pub(super) fn fold(&mut self, delta: Delta<V>) -> BTreeSet<String> {
        match delta {
            Delta::Apply(view) => self.apply(view).into_iter().collect(),
            Delta::Delete(key, uid) => {
                let other = |known: &V| !uid.is_empty() && !known.uid().is_empty() && known.uid() != uid;
                if self.get(&key).is_none_or(other) {
                    return BTreeSet::new();
                }
                self.views.remove(&key);
                [key].into()
            }
            Delta::Reset(views) => {
                self.synced = true;
                let views: BTreeMap<String, Box<V>> =
                    views.into_iter().map(|view| (view.key().to_owned(), Box::new(self.later(view)))).collect();
                let keys: BTreeSet<&String> = self.views.keys().chain(views.keys()).collect();
                let changed = keys.into_iter().filter(|key| self.views.get(*key) != views.get(*key));
                let changed = changed.cloned().collect();
                self.views = views;
                changed
            }
        }
    }

    fn apply(&mut self, view: V) -> Option<String> {
        let key = view.key().to_owned();
        if self.views.get(&key).is_some_and(|known| is_older(&view, known) || **known == view) {
            return None;
        }
        self.views.insert(key.clone(), Box::new(view));
        Some(key)
    }

    /// What is known of the object, where that is later.
    fn later(&self, listed: V) -> V {
        match self.views.get(listed.key()) {
            Some(known) if is_older(&listed, known) => V::clone(known),
            _ => listed,
        }
    }

    pub(super) fn is_synced(&self) -> bool {
        self.synced
    }

    pub(super) fn get(&self, key: &str) -> Option<&V> {
        self.views.get(key).map(Box::as_ref)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = &V> {
        self.views.values().map(Box::as_ref)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.views.is_empty()
    }
}

/// Whether both are of one object, and this is an earlier state of it.
fn is_older<V: View>(view: &V, known: &V) -> bool {
    view.uid() == known.uid() && view.version().zip(known.version()).is_some_and(|(view, known)| view < known)
}
