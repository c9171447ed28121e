//! Where budgets do not agree.

use std::collections::BTreeMap;

/// A kind of mismatch. The names are those of conditions and of a metric's label: they stay as they are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Code {
    /// More is promised than the GPUs can form.
    NominalExceedsPhysical,
    /// A Cohort promises more than its GPUs can form.
    OvercommittedCohort,
    /// What the namespaces may use is less than what is lent to them.
    NamespaceQuotaBelowNominal,
    /// A namespace may use more, says its ResourceQuota, than it could ever get.
    NamespaceQuotaAboveNominal,
    /// GPUs offer a profile that nobody lends.
    ProfileNotCovered,
    /// Something is lent in a flavor whose nodes have no GPUs, or that has no nodes, or that is not there.
    FlavorWithoutNodes,
    /// GPU memory is counted in another unit than GiB, or does not go with the slices that are lent.
    MemoryUnitMismatch,
    /// A quota that is no number of whole devices.
    UnreadableQuota,
    /// A ClusterQueue with a check of ours that lends nothing of MIG.
    NoMIGResource,
}

impl Code {
    /// All of them.
    pub const ALL: [Self; 9] = [
        Self::NominalExceedsPhysical,
        Self::OvercommittedCohort,
        Self::NamespaceQuotaBelowNominal,
        Self::NamespaceQuotaAboveNominal,
        Self::ProfileNotCovered,
        Self::FlavorWithoutNodes,
        Self::MemoryUnitMismatch,
        Self::UnreadableQuota,
        Self::NoMIGResource,
    ];

    /// As a condition's type.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::NominalExceedsPhysical => "NominalExceedsPhysical",
            Self::OvercommittedCohort => "OvercommittedCohort",
            Self::NamespaceQuotaBelowNominal => "NamespaceQuotaBelowNominal",
            Self::NamespaceQuotaAboveNominal => "NamespaceQuotaAboveNominal",
            Self::ProfileNotCovered => "ProfileNotCovered",
            Self::FlavorWithoutNodes => "FlavorWithoutNodes",
            Self::MemoryUnitMismatch => "MemoryUnitMismatch",
            Self::UnreadableQuota => "UnreadableQuota",
            Self::NoMIGResource => "NoMIGResource",
        }
    }

    /// What to do about it.
    fn advice(self) -> &'static str {
        match self {
            Self::NominalExceedsPhysical => "Lower nominalQuota to what is possible, or add GPUs.",
            Self::OvercommittedCohort => {
                "Lower the nominalQuota of its members or its own to what is possible together, or add GPUs."
            }
            Self::NamespaceQuotaBelowNominal => {
                "Raise the ResourceQuotas, lower nominalQuota, or give another namespace a LocalQueue of this ClusterQueue."
            }
            Self::NamespaceQuotaAboveNominal => {
                "Lower the ResourceQuota, or raise nominalQuota or what may be borrowed."
            }
            Self::ProfileNotCovered => {
                "Give them a nominalQuota in a ClusterQueue (coveredResources), if somebody is to use them."
            }
            Self::FlavorWithoutNodes => {
                "Correct spec.nodeLabels of the ResourceFlavor or the labels of the nodes, or set the quotas of the flavor to 0; \
                 kubectl slices nodes shows which nodes have GPUs."
            }
            Self::MemoryUnitMismatch => {
                "slicegate.dev/gpu-memory is counted in whole GiB as the names of profiles say: a 1g.10gb takes 10."
            }
            Self::UnreadableQuota => {
                "Write plain whole numbers of resources that there are, as in nvidia.com/mig-1g.10gb with nominalQuota: 8."
            }
            Self::NoMIGResource => {
                "Add nvidia.com/mig-* or slicegate.dev/gpu-memory to coveredResources, or take the AdmissionCheck out."
            }
        }
    }
}

/// What has been found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found(BTreeMap<Code, Vec<String>>);

/// How many findings of one kind are told; more of them say nothing new.
const TOLD: usize = 12;

impl Found {
    /// Notes something, once.
    pub fn note(&mut self, code: Code, what: String) {
        let known = self.0.entry(code).or_default();
        if !known.contains(&what) {
            known.push(what);
        }
    }

    /// Whether something of the kind has been noted.
    #[cfg(test)]
    pub fn has(&self, code: Code) -> bool {
        self.0.contains_key(&code)
    }

    /// A message for each kind: what is wrong, and what to do.
    pub fn messages(self) -> BTreeMap<Code, String> {
        let message = |code: Code, mut found: Vec<String>| {
            let more = found.len().saturating_sub(TOLD);
            found.truncate(TOLD);
            if more > 0 {
                found.push(format!("and {more} more"));
            }
            format!("{}. {}", found.join("; "), code.advice())
        };
        self.0.into_iter().map(|(code, found)| (code, message(code, found))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_found_is_told_once_and_no_more_than_anybody_reads() {
        let mut found = Found::default();
        for i in 0..20 {
            found.note(Code::UnreadableQuota, format!("thing {i}"));
            found.note(Code::UnreadableQuota, "thing 0".to_owned());
        }
        assert!(found.has(Code::UnreadableQuota) && !found.has(Code::NoMIGResource));
        let message = &found.messages()[&Code::UnreadableQuota];
        assert!(message.ends_with("thing 11; and 8 more. Write plain whole numbers of resources that there are, as in nvidia.com/mig-1g.10gb with nominalQuota: 8."), "{message}");
        assert_eq!(message.matches("thing 0;").count(), 1);
    }

    #[test]
    fn every_code_has_a_name_of_its_own_and_says_what_to_do() {
        let names: std::collections::BTreeSet<&str> = Code::ALL.iter().map(|code| code.as_str()).collect();
        assert_eq!(names.len(), Code::ALL.len());
        assert!(Code::ALL.iter().all(|code| code.advice().ends_with('.')));
    }
}
