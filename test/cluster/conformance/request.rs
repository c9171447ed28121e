//! Requests, as the model takes them.

use std::fmt;
use std::sync::Arc;

use serde_json::Value;
use slicegate_core::sim::api_server::{Collection, Draft, Guard, Key, Object, Refusal};

use super::kinds::{Entry, Mirrored};

/// An object that a client has read, as both sides have it.
#[derive(Clone)]
pub struct Seen<K: Mirrored> {
    pub model: Arc<Object<K>>,
    pub real: Value,
}

/// A write.
#[derive(Clone)]
pub enum Write<K: Mirrored> {
    Create(Draft<K>),
    /// `PUT` of what was read, with another `spec`, with its version or without.
    Replace(Seen<K>, bool, K::Spec),
    /// `PUT` of what was read to `status`, with another one.
    ReplaceStatus(Seen<K>, bool, K::Status),
    Patch(Key, Guard, K::Spec),
    PatchStatus(Key, Guard, K::Status),
    /// JSON patch with `test`, as the controller writes a MIGNode's `spec`.
    Test(Key, Guard, K::Spec),
    /// Server-side apply of one entry, as the controller writes an admission check.
    Apply(Key, Guard, Entry),
    /// A label and an annotation.
    Mark(Key, Guard, u32),
    Finalizers(Key, Guard, Vec<&'static str>),
    Bind(Key, Guard),
    Delete(Key, Guard),
    DeleteNow(Key, Guard),
}

/// What a write came to in the model.
pub struct Done<K: Mirrored> {
    /// The object that is the answer.
    pub object: Option<Arc<Object<K>>>,
    /// Whether the object is gone now.
    pub gone: bool,
}

impl<K: Mirrored> Write<K> {
    pub fn key(&self) -> &Key {
        match self {
            Self::Create(draft) => &draft.key,
            Self::Replace(seen, ..) | Self::ReplaceStatus(seen, ..) => &seen.model.meta.key,
            Self::Patch(key, ..)
            | Self::PatchStatus(key, ..)
            | Self::Test(key, ..)
            | Self::Apply(key, ..)
            | Self::Mark(key, ..)
            | Self::Finalizers(key, ..)
            | Self::Bind(key, ..)
            | Self::Delete(key, ..)
            | Self::DeleteNow(key, ..) => key,
        }
    }

    /// Whether the API server answers with the object; where it does not, it is read afterwards.
    pub fn answers(&self) -> bool {
        !matches!(self, Self::Bind(..) | Self::Delete(..) | Self::DeleteNow(..))
    }

    pub fn ask(&self, model: &mut Collection<K>) -> Result<Done<K>, Refusal> {
        let object = match self {
            Self::Create(draft) => Some(model.create(draft.clone())?),
            Self::Replace(seen, versioned, spec) => {
                let mut object = (*seen.model).clone();
                object.spec = spec.clone();
                object.meta.version *= u64::from(*versioned);
                Some(model.replace(&object)?)
            }
            Self::ReplaceStatus(seen, versioned, status) => {
                let mut object = (*seen.model).clone();
                object.status = status.clone();
                object.meta.version *= u64::from(*versioned);
                Some(model.replace_status(&object)?)
            }
            Self::Patch(key, guard, wanted) | Self::Test(key, guard, wanted) => {
                Some(model.patch(key, guard, |_, spec| spec.clone_from(wanted))?)
            }
            Self::PatchStatus(key, guard, wanted) => {
                Some(model.patch_status(key, guard, |status| status.clone_from(wanted))?)
            }
            Self::Apply(key, guard, entry) => {
                Some(model.patch_status(key, guard, |status| K::apply(status, entry))?)
            }
            Self::Mark(key, guard, mark) => Some(model.patch(key, guard, |marks, _| {
                let (name, value): (Arc<str>, Arc<str>) = ("mark".into(), format!("m{mark}").into());
                marks.labels.insert(name.clone(), value.clone());
                marks.annotations.insert(name, value);
            })?),
            Self::Finalizers(key, guard, wanted) => Some(model.patch(key, guard, |marks, _| {
                marks.finalizers = wanted.iter().map(|name| (*name).into()).collect();
            })?),
            Self::Bind(key, guard) => Some(model.patch(key, guard, |_, spec| {
                if let Some(bound) = K::bound(spec) {
                    *spec = bound;
                }
            })?),
            Self::Delete(key, guard) => model.delete(key, guard)?,
            Self::DeleteNow(key, guard) => model.delete_now(key, guard)?,
        };
        Ok(Done { object, gone: model.get(self.key()).is_err() })
    }
}

impl<K: Mirrored> fmt::Display for Write<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (kind, name) = (K::NAME, &self.key().name);
        let read = |seen: &Seen<K>, versioned: &bool| {
            let version = if *versioned { "with its version" } else { "without a version" };
            format!("as read at version {} of {}, {version}", seen.model.meta.version, seen.model.meta.uid)
        };
        match self {
            Self::Create(draft) => {
                let finalizers = &draft.marks.finalizers;
                write!(f, "create {kind} {name}, spec {:?}, finalizers {finalizers:?}", draft.spec)
            }
            Self::Replace(seen, versioned, spec) => {
                write!(f, "replace {kind} {name} {}, spec {spec:?}", read(seen, versioned))
            }
            Self::ReplaceStatus(seen, versioned, status) => {
                write!(f, "replace status of {kind} {name} {}, status {status:?}", read(seen, versioned))
            }
            Self::Patch(_, guard, spec) => write!(f, "patch {kind} {name} if {guard:?}, spec {spec:?}"),
            Self::PatchStatus(_, guard, status) => {
                write!(f, "patch status of {kind} {name} if {guard:?}, status {status:?}")
            }
            Self::Test(_, guard, spec) => {
                write!(f, "JSON patch of {kind} {name} if {guard:?}, spec {spec:?}")
            }
            Self::Apply(_, guard, entry) => write!(f, "apply to {kind} {name} if {guard:?}, {entry:?}"),
            Self::Mark(_, guard, mark) => write!(f, "mark {kind} {name} if {guard:?}, m{mark}"),
            Self::Finalizers(_, guard, wanted) => {
                write!(f, "finalizers of {kind} {name} if {guard:?}, {wanted:?}")
            }
            Self::Bind(_, guard) => write!(f, "bind {kind} {name} if {guard:?}"),
            Self::Delete(_, guard) => write!(f, "delete {kind} {name} if {guard:?}"),
            Self::DeleteNow(_, guard) => write!(f, "delete {kind} {name} without grace if {guard:?}"),
        }
    }
}
