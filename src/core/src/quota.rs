//! ResourceQuotas: what pods are charged, and whether those that a workload will create still fit.
//!
//! What a pod is charged and which quotas it matches is as in `kubernetes/pkg/quota/v1/evaluator/core/pods.go`; when its creation
//! is refused, as in `apiserver/pkg/admission/plugin/resourcequota/controller.go`, `CheckRequest`.

mod account;
mod namespace;
mod scope;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::sync::Arc;

pub use account::{Account, Lack, Standing, Verdict};
pub use namespace::{Count, Job, Member, Namespace, State};
pub use scope::{Requirement, Scope};

/// The quota of pod objects in storage, whether they run or are over.
pub const COUNT_PODS: &str = "count/pods";

/// What the SlicePolicy says of ResourceQuotas.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mode {
    /// They are not looked at.
    Off,
    /// What would be refused is said, and let in all the same.
    Report,
    /// What would be refused waits.
    #[default]
    Enforce,
}

/// Amounts by resource, in thousandths of cores, bytes or devices: the finest that a quantity of Kubernetes is meant to be.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Amounts(pub BTreeMap<Arc<str>, i128>);

impl Amounts {
    /// The amount of one resource; zero when it is not there.
    #[must_use]
    pub fn get(&self, resource: &str) -> i128 {
        self.0.get(resource).copied().unwrap_or(0)
    }

    /// Adds `times` times `other`.
    pub fn add(&mut self, other: &Self, times: i128) {
        for (resource, amount) in &other.0 {
            let sum = self.0.entry(resource.clone()).or_default();
            *sum = sum.saturating_add(amount.saturating_mul(times));
        }
    }

    /// Raises each amount to that of `other`, if that is more.
    pub fn raise(&mut self, other: &Self) {
        for (resource, amount) in &other.0 {
            let here = self.0.entry(resource.clone()).or_insert(*amount);
            *here = (*here).max(*amount);
        }
    }

    /// What of it is more than zero.
    #[must_use]
    fn positive(mut self) -> Self {
        self.0.retain(|_, amount| *amount > 0);
        self
    }
}

impl<N: Into<Arc<str>>> FromIterator<(N, i128)> for Amounts {
    fn from_iter<I: IntoIterator<Item = (N, i128)>>(amounts: I) -> Self {
        Self(amounts.into_iter().map(|(name, amount)| (name.into(), amount)).collect())
    }
}

/// What one pod is charged, and what scopes go by.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Charge {
    /// By the names that quotas use: `pods`, `requests.cpu`, `requests.nvidia.com/mig-1g.10gb`, and so on.
    pub usage: Amounts,
    /// It has `activeDeadlineSeconds`.
    pub terminating: bool,
    /// It asks for no cpu and no memory.
    pub best_effort: bool,
    /// Its `priorityClassName`.
    pub priority_class: Option<Arc<str>>,
    /// It has affinity or anti-affinity to pods of other namespaces.
    pub cross_namespace_affinity: bool,
    /// For each resource that its containers must name where a quota counts it (cpu and memory, `pods.go`, `validationSet`), a
    /// container that does not.
    pub unspecified: BTreeMap<Arc<str>, Arc<str>>,
}

impl Charge {
    /// What is left of the charge when the pod is over, and its object still there.
    fn over() -> Amounts {
        Amounts::from_iter([(COUNT_PODS, 1000)])
    }
}

/// A ResourceQuota.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Quota {
    /// Its name.
    pub name: Arc<str>,
    /// What it allows: the lesser of `spec.hard` and `status.hard`, so that a change counts from its first moment.
    pub hard: Amounts,
    /// `status.used`, which the API server raises as it lets pods in.
    pub used: Amounts,
    /// All of them must match.
    pub scopes: Vec<Scope>,
    /// What of it cannot be read: nothing is let past it then.
    pub unreadable: Option<String>,
}

impl Quota {
    /// Whether it counts a pod. A scope that is not known counts all: nothing is let past what cannot be read.
    fn matches(&self, charge: &Charge) -> bool {
        self.scopes.iter().all(|scope| scope.matches(charge))
    }
}
