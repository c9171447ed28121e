//! The API server, as far as those who write to it can tell it from the real one.
//!
//! Kept as Kubernetes has it (`k8s.io/apiserver/pkg/registry/generic/registry/store.go` and `registry/rest`):
//!
//! * one count of revisions over all kinds, of which each change of an object takes one; a write that changes nothing takes
//!   none and tells nobody;
//! * `metadata.generation`, which grows with `spec` and at the mark of deletion, but not with `status` or labels;
//! * the status subresource: a write to the object leaves `status` alone, a write to `status` leaves all else alone;
//! * preconditions: `resourceVersion` in a body or in options of a deletion (409); `uid` there (409, in a patch 422, in a patch
//!   of the status of a custom resource none at all); `test` in a JSON patch (422);
//! * deletion that waits for finalizers, and for the kubelet where the kind [lingers](Kind::lingers);
//! * lists as of now or, from a watch cache, as of a while ago; watches from a version on, which tell every change of their
//!   kind in order, and which are refused (410) when what they would tell has been forgotten.
//!
//! Left out: validation, managed fields (an apply is a patch), field and label selectors (filter what is listed), labels
//! changed through `status`.
//!
//! ```
//! use slicegate_core::sim::api_server::{Collection, Draft, Guard, Kind, Refusal, Revisions};
//!
//! #[derive(Clone, Debug, PartialEq)]
//! struct Lamp;
//! impl Kind for Lamp {
//!     type Spec = bool;
//!     type Status = u32;
//!     const NAME: &'static str = "Lamp";
//! }
//!
//! let mut lamps = Collection::<Lamp>::new(&Revisions::default());
//! let lamp = lamps.create(Draft::new("", "hall", false))?;
//! let guard = Guard::version(lamp.meta.version);
//! lamps.patch(&lamp.meta.key, &guard, |_, on| *on = true)?;
//! assert_eq!(lamps.patch(&lamp.meta.key, &guard, |_, on| *on = false), Err(Refusal::Conflict));
//! # Ok::<(), Refusal>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A kind of object.
pub trait Kind: Clone + PartialEq + fmt::Debug {
    /// What people and controllers ask for: all that counts for `metadata.generation`.
    type Spec: Clone + PartialEq + fmt::Debug;
    /// What is reported, through the status subresource.
    type Status: Clone + PartialEq + fmt::Debug + Default;
    /// Its name.
    const NAME: &'static str;
    /// Whether the API server counts generations of it; of Nodes it does not.
    const HAS_GENERATION: bool = true;
    /// Whether it may be replaced without naming a version, as built-in kinds may and custom resources may not. Of a custom
    /// resource a patch of `status` does not even look at the uid that it names.
    const UNCONDITIONAL_UPDATE: bool = false;

    /// Whether it is deleted with grace, as Pods are: the mark of deletion is a change of its own even where it goes at once.
    const GRACEFUL: bool = false;

    /// Whether a change of `spec` raises `metadata.generation`; that a pod is bound does not.
    fn raises_generation(before: &Self::Spec, after: &Self::Spec) -> bool {
        before != after
    }

    /// Whether an object that is deleted stays until somebody deletes it without grace, as a pod does that is bound and not over.
    fn lingers(object: &Object<Self>) -> bool {
        let _ = object;
        false
    }
}

/// The count of revisions that all kinds of one API server share.
#[derive(Clone, Debug, Default)]
pub struct Revisions(Arc<AtomicU64>);

impl Revisions {
    /// The revision of the last change.
    pub fn current(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    fn next(&self) -> u64 {
        self.0.fetch_add(1, Ordering::Relaxed) + 1
    }
}

/// Namespace and name of an object; an object of the whole cluster has an empty namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Key {
    /// Its namespace.
    pub namespace: Arc<str>,
    /// Its name.
    pub name: Arc<str>,
}

impl Key {
    /// A key.
    pub fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// An object's metadata.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Meta {
    /// Namespace and name.
    pub key: Key,
    /// `uid`: another one for each object that ever had the name.
    pub uid: Arc<str>,
    /// `resourceVersion`.
    pub version: u64,
    /// `generation`; 0 for a kind of which none are counted.
    pub generation: i64,
    /// Whether `deletionTimestamp` is set.
    pub deleting: bool,
    /// Whether `deletionGracePeriodSeconds` is 0, so that only finalizers keep it.
    pub grace_is_over: bool,
    /// Labels and finalizers, which whoever writes the object may change.
    pub marks: Marks,
}

/// The part of the metadata that is the writers'.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marks {
    /// `labels`.
    pub labels: BTreeMap<Arc<str>, Arc<str>>,
    /// `annotations`.
    pub annotations: BTreeMap<Arc<str>, Arc<str>>,
    /// `finalizers`.
    pub finalizers: BTreeSet<Arc<str>>,
}

/// An object.
#[derive(Clone, Debug, PartialEq)]
pub struct Object<K: Kind> {
    /// `metadata`.
    pub meta: Meta,
    /// `spec`.
    pub spec: K::Spec,
    /// `status`.
    pub status: K::Status,
}

impl<K: Kind> Object<K> {
    /// Whether nothing keeps it any more.
    fn goes(&self) -> bool {
        self.meta.deleting && self.meta.grace_is_over && self.meta.marks.finalizers.is_empty()
    }
}

/// An object to be made.
#[derive(Clone, Debug, PartialEq)]
pub struct Draft<K: Kind> {
    /// Namespace and name.
    pub key: Key,
    /// Labels and finalizers.
    pub marks: Marks,
    /// `spec`.
    pub spec: K::Spec,
}

impl<K: Kind> Draft<K> {
    /// An object without labels or finalizers.
    pub fn new(namespace: &str, name: &str, spec: K::Spec) -> Self {
        Self { key: Key::new(namespace, name), marks: Marks::default(), spec }
    }
}

/// What a write takes for granted; all that is given must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Guard {
    /// Nothing.
    #[default]
    Any,
    /// `metadata.uid` and `metadata.resourceVersion` in the body of a patch or the options of a deletion.
    Body {
        /// The object.
        uid: Option<Arc<str>>,
        /// Its version.
        version: Option<u64>,
    },
    /// `test` operations of a JSON patch.
    Test {
        /// The object.
        uid: Option<Arc<str>>,
        /// Its generation.
        generation: Option<i64>,
    },
}

impl Guard {
    /// The object has not changed.
    pub fn version(version: u64) -> Self {
        Self::Body { uid: None, version: Some(version) }
    }

    /// It is still the same object.
    pub fn uid(uid: &Arc<str>) -> Self {
        Self::Body { uid: Some(uid.clone()), version: None }
    }

    /// `stranger`: what is said of another object's uid.
    fn check(&self, meta: &Meta, stranger: Refusal) -> Result<(), Refusal> {
        let is = |uid: &Option<Arc<str>>| uid.as_ref().is_none_or(|uid| *uid == meta.uid);
        match self {
            Self::Body { version: Some(version), .. } if *version != meta.version => Err(Refusal::Conflict),
            Self::Body { uid, .. } if !is(uid) => Err(stranger),
            Self::Test { uid, generation } => {
                let holds = is(uid) && generation.is_none_or(|generation| generation == meta.generation);
                if holds { Ok(()) } else { Err(Refusal::Invalid) }
            }
            Self::Any | Self::Body { .. } => Ok(()),
        }
    }
}

/// Why a request was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// There is no such object.
    #[error("not found")]
    NotFound,
    /// There is such an object.
    #[error("already exists")]
    AlreadyExists,
    /// A precondition does not hold.
    #[error("the object has been modified")]
    Conflict,
    /// A `test` does not hold, a patch is of another uid, a version is missing, or a finalizer comes too late.
    #[error("invalid")]
    Invalid,
    /// What has been asked for is no longer remembered.
    #[error("too old resource version")]
    Expired,
}

impl Refusal {
    /// HTTP status.
    pub fn code(self) -> u16 {
        match self {
            Self::NotFound => 404,
            Self::AlreadyExists | Self::Conflict => 409,
            Self::Expired => 410,
            Self::Invalid => 422,
        }
    }
}

/// What an event tells of an object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `ADDED`
    Added,
    /// `MODIFIED`
    Modified,
    /// `DELETED`
    Deleted,
}

/// An event of a watch.
#[derive(Clone, Debug, PartialEq)]
pub struct Event<K: Kind> {
    /// What has happened.
    pub change: Change,
    /// The object after it; when it was deleted, as it was before, with the version of the deletion.
    pub object: Arc<Object<K>>,
}

/// An answer to a list.
#[derive(Clone, Debug, PartialEq)]
pub struct List<K: Kind> {
    /// The revision as of which it is.
    pub version: u64,
    /// The objects, by namespace and name.
    pub items: Vec<Arc<Object<K>>>,
}

/// A watch of one kind: how far its events have been taken.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Watch {
    next: usize,
}

/// How many requests there were.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Writes that changed something.
    pub written: u64,
    /// Writes that changed nothing.
    pub idle: u64,
    /// Writes that were refused.
    pub refused: u64,
}

/// The objects of one kind, and all that ever happened to them.
#[derive(Clone, Debug)]
pub struct Collection<K: Kind> {
    revisions: Revisions,
    objects: BTreeMap<Key, Arc<Object<K>>>,
    history: Vec<Event<K>>,
    /// The first revision that may still be asked for.
    compacted: u64,
    /// Whether preconditions are looked at; without them it is not the API server any more.
    heeds_guards: bool,
    requests: Requests,
}

impl<K: Kind> Collection<K> {
    /// No objects.
    pub fn new(revisions: &Revisions) -> Self {
        Self {
            revisions: revisions.clone(),
            objects: BTreeMap::new(),
            history: Vec::new(),
            compacted: 0,
            heeds_guards: true,
            requests: Requests::default(),
        }
    }

    /// From now on no write is refused for its precondition: to see that somebody notices.
    pub fn ignore_guards(&mut self) {
        self.heeds_guards = false;
    }

    /// How many writes there were.
    pub fn requests(&self) -> Requests {
        self.requests
    }

    /// `GET` of one object, as of now.
    pub fn get(&self, key: &Key) -> Result<Arc<Object<K>>, Refusal> {
        self.objects.get(key).cloned().ok_or(Refusal::NotFound)
    }

    /// The objects as they are, by namespace and name.
    pub fn iter(&self) -> impl Iterator<Item = &Arc<Object<K>>> {
        self.objects.values()
    }

    /// `GET` of all, as of now: what a quorum read gives.
    pub fn list(&self) -> List<K> {
        List { version: self.revisions.current(), items: self.objects.values().cloned().collect() }
    }

    /// `GET` of all, as of a revision: what a watch cache gives that has not heard of what came after it.
    pub fn list_at(&self, version: u64) -> Result<List<K>, Refusal> {
        if version < self.compacted {
            return Err(Refusal::Expired);
        }
        let mut objects: BTreeMap<&Key, &Arc<Object<K>>> = BTreeMap::new();
        for event in self.history.iter().take_while(|event| event.object.meta.version <= version) {
            let key = &event.object.meta.key;
            match event.change {
                Change::Added | Change::Modified => objects.insert(key, &event.object),
                Change::Deleted => objects.remove(key),
            };
        }
        Ok(List { version, items: objects.into_values().cloned().collect() })
    }

    /// `GET` with `watch` of all that happens after a revision.
    pub fn watch(&self, version: u64) -> Result<Watch, Refusal> {
        if version < self.compacted {
            return Err(Refusal::Expired);
        }
        Ok(Watch { next: self.history.partition_point(|event| event.object.meta.version <= version) })
    }

    /// The next event of a watch, if there is one.
    pub fn next(&self, watch: &mut Watch) -> Option<&Event<K>> {
        let event = self.history.get(watch.next)?;
        watch.next += 1;
        Some(event)
    }

    /// How many events a watch has still to tell.
    pub fn behind(&self, watch: &Watch) -> usize {
        self.history.len() - watch.next
    }

    /// How many events there have been.
    pub fn events(&self) -> usize {
        self.history.len()
    }

    /// The object of an event, counted from the first.
    pub fn event(&self, n: usize) -> &Arc<Object<K>> {
        &self.history[n].object
    }

    /// From now on nothing can be asked for as of a revision before this one, even where nothing has changed since.
    pub fn compact(&mut self, version: u64) {
        self.compacted = self.compacted.max(version);
    }

    /// `POST`.
    pub fn create(&mut self, draft: Draft<K>) -> Result<Arc<Object<K>>, Refusal> {
        if self.objects.contains_key(&draft.key) {
            return self.refuse(Refusal::AlreadyExists);
        }
        let version = self.revisions.next();
        let meta = Meta {
            uid: format!("{}-{version}", draft.key.name).into(),
            key: draft.key,
            version,
            generation: i64::from(K::HAS_GENERATION),
            deleting: false,
            grace_is_over: false,
            marks: draft.marks,
        };
        let object = Arc::new(Object { meta, spec: draft.spec, status: K::Status::default() });
        self.requests.written += 1;
        Ok(self.put(Change::Added, object))
    }

    /// `PUT` of the object: labels, finalizers and `spec`. A version of 0 and an empty uid stand for none.
    pub fn replace(&mut self, object: &Object<K>) -> Result<Arc<Object<K>>, Refusal> {
        let guard = self.guard_of(object)?;
        self.patch(&object.meta.key, &guard, |marks, spec| {
            marks.clone_from(&object.meta.marks);
            spec.clone_from(&object.spec);
        })
    }

    /// `PUT` of its `status`.
    pub fn replace_status(&mut self, object: &Object<K>) -> Result<Arc<Object<K>>, Refusal> {
        let guard = self.guard_of(object)?;
        self.patch_status(&object.meta.key, &guard, |status| status.clone_from(&object.status))
    }

    fn guard_of(&mut self, object: &Object<K>) -> Result<Guard, Refusal> {
        let (uid, version) = (&object.meta.uid, object.meta.version);
        let guard = Guard::Body {
            uid: (!uid.is_empty()).then(|| uid.clone()),
            version: (version != 0).then_some(version),
        };
        self.admit(&object.meta.key, &guard, Refusal::Conflict)?;
        if version == 0 && !K::UNCONDITIONAL_UPDATE {
            return self.refuse(Refusal::Invalid);
        }
        Ok(guard)
    }

    /// `PATCH` of the object: labels, finalizers and `spec`.
    pub fn patch(
        &mut self,
        key: &Key,
        guard: &Guard,
        change: impl FnOnce(&mut Marks, &mut K::Spec),
    ) -> Result<Arc<Object<K>>, Refusal> {
        let before = self.admit(key, guard, Refusal::Invalid)?;
        let mut after = (*before).clone();
        change(&mut after.meta.marks, &mut after.spec);
        let late =
            before.meta.deleting && !after.meta.marks.finalizers.is_subset(&before.meta.marks.finalizers);
        if late {
            return self.refuse(Refusal::Invalid);
        }
        if K::HAS_GENERATION && K::raises_generation(&before.spec, &after.spec) {
            after.meta.generation += 1;
        }
        self.write(&before, after)
    }

    /// `PATCH` of its `status`.
    pub fn patch_status(
        &mut self,
        key: &Key,
        guard: &Guard,
        change: impl FnOnce(&mut K::Status),
    ) -> Result<Arc<Object<K>>, Refusal> {
        let version = match guard {
            Guard::Body { version, .. } if !K::UNCONDITIONAL_UPDATE => {
                Some(Guard::Body { uid: None, version: *version })
            }
            _ => None,
        };
        let before = self.admit(key, version.as_ref().unwrap_or(guard), Refusal::Invalid)?;
        let mut after = (*before).clone();
        change(&mut after.status);
        self.write(&before, after)
    }

    /// `DELETE`, with grace as the kind has it. Returns the object if it is still there, on its way out.
    pub fn delete(&mut self, key: &Key, guard: &Guard) -> Result<Option<Arc<Object<K>>>, Refusal> {
        self.delete_with(key, guard, false)
    }

    /// `DELETE` with `gracePeriodSeconds: 0`: only finalizers keep the object.
    pub fn delete_now(&mut self, key: &Key, guard: &Guard) -> Result<Option<Arc<Object<K>>>, Refusal> {
        self.delete_with(key, guard, true)
    }

    fn delete_with(
        &mut self,
        key: &Key,
        guard: &Guard,
        now: bool,
    ) -> Result<Option<Arc<Object<K>>>, Refusal> {
        let mut before = self.admit(key, guard, Refusal::Conflict)?;
        let mut after = (*before).clone();
        after.meta.grace_is_over |= now;
        if !before.meta.deleting {
            after.meta.grace_is_over |= !K::lingers(&before);
            after.meta.deleting = true;
            after.meta.generation += i64::from(K::HAS_GENERATION);
        }
        if K::GRACEFUL && after != *before {
            after.meta.version = self.revisions.next();
            before = self.put(Change::Modified, Arc::new(after.clone()));
            if !after.goes() {
                self.requests.written += 1;
                return Ok(Some(before));
            }
        }
        self.write(&before, after)?;
        Ok(self.objects.get(key).cloned())
    }

    fn admit(&mut self, key: &Key, guard: &Guard, stranger: Refusal) -> Result<Arc<Object<K>>, Refusal> {
        let Some(object) = self.objects.get(key).cloned() else { return self.refuse(Refusal::NotFound) };
        match guard.check(&object.meta, stranger) {
            Err(refusal) if self.heeds_guards => self.refuse(refusal),
            _ => Ok(object),
        }
    }

    fn refuse<T>(&mut self, refusal: Refusal) -> Result<T, Refusal> {
        self.requests.refused += 1;
        Err(refusal)
    }

    fn write(&mut self, before: &Object<K>, mut after: Object<K>) -> Result<Arc<Object<K>>, Refusal> {
        let goes = after.goes();
        if after == *before && !goes {
            self.requests.idle += 1;
            return self.get(&before.meta.key);
        }
        self.requests.written += 1;
        let version = self.revisions.next();
        if goes {
            // Nobody ever sees what it was about to become.
            after = before.clone();
        }
        after.meta.version = version;
        Ok(self.put(if goes { Change::Deleted } else { Change::Modified }, Arc::new(after)))
    }

    fn put(&mut self, change: Change, object: Arc<Object<K>>) -> Arc<Object<K>> {
        match change {
            Change::Added | Change::Modified => self.objects.insert(object.meta.key.clone(), object.clone()),
            Change::Deleted => self.objects.remove(&object.meta.key),
        };
        self.history.push(Event { change, object: object.clone() });
        object
    }
}

#[cfg(test)]
mod tests;
