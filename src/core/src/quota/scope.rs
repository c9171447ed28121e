//! Which pods a quota counts.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::Charge;

/// A scope of a ResourceQuota: one of `spec.scopes`, or one of `spec.scopeSelector` (`core/v1`, `ResourceQuotaScope`).
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Scope {
    /// `Terminating`: pods with `activeDeadlineSeconds`.
    Terminating,
    /// `NotTerminating`.
    NotTerminating,
    /// `BestEffort`: pods that ask for no cpu and no memory, MIG slices or not.
    BestEffort,
    /// `NotBestEffort`.
    NotBestEffort,
    /// `PriorityClass`.
    PriorityClass(Requirement),
    /// `CrossNamespacePodAffinity`.
    CrossNamespacePodAffinity,
    /// `VolumeAttributesClass`, which is about volumes: it counts no pod.
    VolumeAttributesClass,
    /// One that this version does not know. It is taken to count every pod.
    Unknown(Arc<str>),
}

/// What a scope asks of a name.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Requirement {
    /// That there is one.
    Exists,
    /// That there is none.
    DoesNotExist,
    /// That it is one of these.
    In(BTreeSet<Arc<str>>),
    /// That there is none, or another one.
    NotIn(BTreeSet<Arc<str>>),
}

impl Requirement {
    fn met_by(&self, name: Option<&Arc<str>>) -> bool {
        match self {
            Self::Exists => name.is_some(),
            Self::DoesNotExist => name.is_none(),
            Self::In(names) => name.is_some_and(|name| names.contains(name)),
            Self::NotIn(names) => name.is_none_or(|name| !names.contains(name)),
        }
    }
}

impl Scope {
    /// Whether a pod is in it.
    pub(super) fn matches(&self, charge: &Charge) -> bool {
        match self {
            Self::Terminating => charge.terminating,
            Self::NotTerminating => !charge.terminating,
            Self::BestEffort => charge.best_effort,
            Self::NotBestEffort => !charge.best_effort,
            Self::PriorityClass(requirement) => requirement.met_by(charge.priority_class.as_ref()),
            Self::CrossNamespacePodAffinity => charge.cross_namespace_affinity,
            Self::VolumeAttributesClass => false,
            Self::Unknown(_) => true,
        }
    }
}
