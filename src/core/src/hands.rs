//! Whose hands the slices of a node are in, and how many are out of the reach of every claim.
//!
//! A slice in use is **taken** when a live pod holds it whose workload has no claim left to cover it there, or when a process
//! has held it without a pod for longer than pods take to end. A pod that is over, or that nobody knows any more, only has
//! not let go yet: its slice counts for the next claim, and for Ready once it is idle.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::id::WorkloadUid;
use crate::node::Claim;
use crate::profile::ProfileName;

/// Whose a slice in use is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Hands {
    /// Nobody's, or the agent does not say whose.
    Unknown,
    /// A live pod's of this workload, which may or may not have a claim.
    Workload {
        /// The pod's namespace.
        namespace: Arc<str>,
        /// The workload that the pod's label names.
        uid: WorkloadUid,
    },
    /// A pod's that is over or gone, or a process's that its pod has only just left: about to let go.
    Leaving,
    /// A live pod's of no workload, or a process's that goes on without a pod.
    Stranger,
}

/// For each uid of a Workload that has an heir: the uid of its last heir.
pub type Heirs = BTreeMap<WorkloadUid, WorkloadUid>;

/// Slices by profile that no claim can count on, among those that are in use. What has been claimed for a Workload covers
/// what its heirs' pods hold, before and after it is theirs.
pub fn taken<'a>(
    in_use: impl IntoIterator<Item = (&'a ProfileName, &'a Hands)>,
    claims: &[Claim],
    heirs: &Heirs,
) -> BTreeMap<ProfileName, u32> {
    let mut taken: BTreeMap<ProfileName, u32> = BTreeMap::new();
    let mut held: BTreeMap<(&str, &WorkloadUid, &ProfileName), u32> = BTreeMap::new();
    for (profile, hands) in in_use {
        match hands {
            Hands::Unknown | Hands::Leaving => {}
            Hands::Stranger => *taken.entry(profile.clone()).or_default() += 1,
            Hands::Workload { namespace, uid } => {
                *held.entry((&**namespace, uid, profile)).or_default() += 1;
            }
        }
    }
    for ((namespace, uid, profile), held) in held {
        let covered: u32 = claims
            .iter()
            .filter(|c| {
                heirs.get(&c.workload.uid).unwrap_or(&c.workload.uid) == uid
                    && *c.workload.namespace == *namespace
                    && c.profile == *profile
            })
            .fold(0, |sum, c| u32::saturating_add(sum, c.slices));
        if held > covered {
            *taken.entry(profile.clone()).or_default() += held - covered;
        }
    }
    taken
}
