//! What each workload has of a node.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Account, Amount, Usage};
use crate::id::WorkloadUid;
use crate::node::{Holder, MigNode};
use crate::plan::Pod;
use crate::profile::ProfileName;
use crate::workload::Workload;

/// What one workload has claimed of one profile on one node.
#[derive(Debug, PartialEq, Eq)]
pub struct Share {
    workload: WorkloadUid,
    /// The uid of the object that the workload was made for, and that its pods are owned by.
    owner: Option<Arc<str>>,
    /// To whom it is charged.
    pub account: Account,
    /// MiB of one slice.
    mib: u64,
    /// Slices that are claimed.
    reserved: u32,
    /// Those of them that pods hold.
    used: u32,
}

impl Share {
    /// What it comes to.
    pub fn usage(&self) -> Usage {
        let amount =
            |slices: u32| Amount { slices: slices.into(), mib: u128::from(slices) * u128::from(self.mib) };
        Usage { used: amount(self.used), idle: amount(self.reserved - self.used) }
    }

    /// Whether a pod that holds one more slice of the profile does so by right of this claim. Pods of an elastic job bear the
    /// uid of the Workload that they were born under for as long as they live, while claims go on to the next one.
    fn covers(&self, pod: &Pod, by_label: bool) -> bool {
        let is_its = if by_label {
            pod.workload.as_ref() == Some(&self.workload)
        } else {
            pod.workload.is_some() && pod.owner.is_some() && pod.owner == self.owner
        };
        // A label is anybody's to write, a namespace is not.
        is_its && pod.key.namespace == self.account.namespace && self.used < self.reserved
    }
}

/// What each workload has of a node. Of a Workload that is gone, what was known of it `before` holds.
pub fn of(
    mig: &MigNode,
    pods: &[&Pod],
    workloads: &BTreeMap<WorkloadUid, Workload>,
    before: &[Share],
    memory: &BTreeMap<ProfileName, u64>,
) -> Vec<Share> {
    let mut shares: Vec<Share> = Vec::new();
    for claim in &mig.confirmed.claims {
        let uid = &claim.workload.uid;
        let same = |share: &Share| share.workload == *uid && share.account.profile == claim.profile;
        if let Some(share) = shares.iter_mut().find(|share| same(share)) {
            share.reserved = share.reserved.saturating_add(claim.slices);
            continue;
        }
        let (queue, owner) = match workloads.get(uid) {
            Some(workload) => (workload.queue.clone(), workload.owner.clone()),
            None => before
                .iter()
                .find(|share| share.workload == *uid)
                .map_or((None, None), |share| (Some(share.account.local_queue.clone()), share.owner.clone())),
        };
        shares.push(Share {
            workload: uid.clone(),
            owner,
            account: Account {
                namespace: claim.workload.namespace.clone(),
                local_queue: queue.unwrap_or_default(),
                profile: claim.profile.clone(),
            },
            mib: mib(mig, &claim.profile, memory),
            reserved: claim.slices,
            used: 0,
        });
    }
    if shares.is_empty() {
        return shares;
    }
    let pods: BTreeMap<(&str, &str), &Pod> =
        pods.iter().map(|pod| ((&*pod.key.namespace, &*pod.key.name), *pod)).collect();
    for slice in &mig.slices {
        let Some(Holder::Pod { namespace, name }) = &slice.holder else { continue };
        let Some(pod) = pods.get(&(&**namespace, &**name)) else { continue };
        let find = |by_label: bool| {
            let like = |share: &usize| shares[*share].account.profile == slice.slice.profile;
            (0..shares.len()).filter(like).find(|share| shares[*share].covers(pod, by_label))
        };
        if let Some(share) = find(true).or_else(|| find(false)) {
            shares[share].used += 1;
        }
    }
    shares
}

/// MiB of one slice of a profile: as NVML reports it for the node's GPUs, the least if they differ; else as some other node has
/// said; else as the profile's name says.
fn mib(mig: &MigNode, profile: &ProfileName, memory: &BTreeMap<ProfileName, u64>) -> u64 {
    let here = mig.gpus.values().filter_map(|gpu| gpu.model.profile(profile));
    let here = here.map(|profile| profile.memory_mib).min();
    here.or_else(|| memory.get(profile).copied())
        .unwrap_or_else(|| profile.memory_gib().map_or(0, |gib| u64::from(gib) * 1024))
}
