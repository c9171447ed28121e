//! Amounts of cpu, memory, pods and extended resources.

use std::collections::BTreeMap;
use std::sync::Arc;

/// Amounts by resource name: cpu in millicores, memory and ephemeral storage in bytes, everything else in units, as the
/// scheduler counts them (`k8s.io/kubernetes/pkg/scheduler/framework/types.go`, `Resource`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resources(pub BTreeMap<Arc<str>, i64>);

impl Resources {
    /// The amount of one resource; zero when it is not there.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Adds `times` times `other`.
    pub fn add(&mut self, other: &Self, times: i64) {
        for (name, amount) in &other.0 {
            let sum = self.0.entry(name.clone()).or_default();
            *sum = sum.saturating_add(amount.saturating_mul(times));
        }
    }

    /// The first resource, in order of names, of which there is less than `asked`.
    pub fn first_lacking<'a>(&self, asked: &'a Self) -> Option<&'a str> {
        asked
            .0
            .iter()
            .find(|(name, amount)| **amount > 0 && self.get(name) < **amount)
            .map(|(name, _)| &**name)
    }
}

impl<N: Into<Arc<str>>> FromIterator<(N, i64)> for Resources {
    fn from_iter<I: IntoIterator<Item = (N, i64)>>(amounts: I) -> Self {
        Self(amounts.into_iter().map(|(name, amount)| (name.into(), amount)).collect())
    }
}
