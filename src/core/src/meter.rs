//! Chargeback: how long slices were reserved, for whom, and for how much of that time they were used.
//!
//! * *Reserved* is what claims are for, from the write that claims it to the one that gives it back. Nobody else can have it
//!   meanwhile, so it counts while the slice is still being made, and until the last pod of a workload that is over has ended.
//! * *Used* is the part of it that pods of the claim's workload hold, as the node's agent says, for as long as they are not over.
//! * *Idle* is the rest: reserved = used + idle, at every moment and so in every sum. What a pod holds without a claim of its
//!   workload is charged to nobody.
//!
//! What is the case changes with events and holds until the next one, so the integral over time is exact: it is kept in whole
//! slice-nanoseconds, and does not depend on how often anybody looks.

mod share;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::ops::{Add, AddAssign, Mul, SubAssign};
use std::sync::Arc;
use std::time::Duration;

use crate::id::{NodeName, WorkloadUid};
use crate::node::Node;
use crate::plan::Pod;
use crate::profile::ProfileName;
use crate::workload::Workload;
use share::Share;

/// The namespace and the LocalQueue of all those for whom there is no account any more. Neither can be called so.
pub const OTHERS: &str = "_others";

/// To whom slices are charged.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Account {
    /// The workload's namespace.
    pub namespace: Arc<str>,
    /// Its LocalQueue; empty when it was gone before that could be learned.
    pub local_queue: Arc<str>,
    /// The slices' profile.
    pub profile: ProfileName,
}

/// Slices, and their memory in MiB as NVML reports it: so many now, or, in a sum over time, so many times nanoseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Amount {
    /// Slices.
    pub slices: u128,
    /// MiB.
    pub mib: u128,
}

/// What is reserved, in its two parts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Held by pods of those for whom it is reserved.
    pub used: Amount,
    /// Not held by them.
    pub idle: Amount,
}

impl Usage {
    /// Both parts.
    pub fn reserved(&self) -> Amount {
        self.used + self.idle
    }
}

/// Counts, for as long as it is told what changes.
#[derive(Debug)]
pub struct Meter {
    /// Until when it has counted.
    now: Duration,
    /// How many accounts it keeps apart.
    most: usize,
    /// How many it does.
    apart: usize,
    accounts: Vec<Entry>,
    /// Where each account is that has been charged to it by name.
    known: BTreeMap<Account, usize>,
    nodes: BTreeMap<NodeName, Vec<Share>>,
    /// MiB of a slice of each profile, as some node has said.
    memory: BTreeMap<ProfileName, u64>,
}

#[derive(Debug)]
struct Entry {
    account: Account,
    /// What is the case now.
    rate: Usage,
    /// What has been so far.
    total: Usage,
}

impl Meter {
    /// A meter that counts from now on, a time on a clock that nobody sets. It keeps `most` accounts apart, and one for each
    /// profile beyond that: an account is there for good once something has been charged to it.
    pub fn new(now: Duration, most: usize) -> Self {
        Self {
            now,
            most,
            apart: 0,
            accounts: Vec::new(),
            known: BTreeMap::new(),
            nodes: BTreeMap::new(),
            memory: BTreeMap::new(),
        }
    }

    /// Counts until `now` what has been the case since it last did. An earlier time than it has counted to changes nothing.
    pub fn advance(&mut self, now: Duration) {
        let passed = now.saturating_sub(self.now);
        if passed.is_zero() {
            return;
        }
        self.now = now;
        for entry in &mut self.accounts {
            entry.total += entry.rate * passed.as_nanos();
        }
    }

    /// Takes in what is the case on a node from `now` on; `None` if there is no such node any more. `pods` are those that are
    /// bound to it and not over.
    pub fn observe(
        &mut self,
        now: Duration,
        name: &NodeName,
        node: Option<&Node>,
        pods: &[&Pod],
        workloads: &BTreeMap<WorkloadUid, Workload>,
    ) {
        self.advance(now);
        let before = self.nodes.remove(name).unwrap_or_default();
        for share in &before {
            self.entry(&share.account).rate -= share.usage();
        }
        let Some(mig) = node.and_then(|node| node.mig.as_ref()) else { return };
        for profile in mig.gpus.values().flat_map(|gpu| &gpu.model.profiles) {
            self.memory.entry(profile.name.clone()).or_insert(profile.memory_mib);
        }
        let shares = share::of(mig, pods, workloads, &before, &self.memory);
        for share in &shares {
            self.entry(&share.account).rate += share.usage();
        }
        if !shares.is_empty() {
            self.nodes.insert(name.clone(), shares);
        }
    }

    /// What has been charged so far, in the order in which the accounts were opened.
    pub fn totals(&self) -> impl ExactSizeIterator<Item = (&Account, &Usage)> {
        self.accounts.iter().map(|entry| (&entry.account, &entry.total))
    }

    fn entry(&mut self, account: &Account) -> &mut Entry {
        let i = self.known.get(account).copied().unwrap_or_else(|| self.open(account));
        &mut self.accounts[i]
    }

    /// Opens an account, or gives the one that stands for all that there is no place for.
    fn open(&mut self, account: &Account) -> usize {
        let account = if self.apart < self.most {
            self.apart += 1;
            account.clone()
        } else {
            let profile = account.profile.clone();
            Account { namespace: OTHERS.into(), local_queue: OTHERS.into(), profile }
        };
        *self.known.entry(account.clone()).or_insert_with(|| {
            self.accounts.push(Entry { account, rate: Usage::default(), total: Usage::default() });
            self.accounts.len() - 1
        })
    }
}

impl Add for Amount {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self { slices: self.slices + other.slices, mib: self.mib + other.mib }
    }
}

impl AddAssign for Usage {
    fn add_assign(&mut self, other: Self) {
        *self = Self { used: self.used + other.used, idle: self.idle + other.idle };
    }
}

impl SubAssign for Usage {
    fn sub_assign(&mut self, other: Self) {
        let less = |a: Amount, b: Amount| Amount { slices: a.slices - b.slices, mib: a.mib - b.mib };
        *self = Self { used: less(self.used, other.used), idle: less(self.idle, other.idle) };
    }
}

impl Mul<u128> for Usage {
    type Output = Self;
    fn mul(self, times: u128) -> Self {
        let more = |a: Amount| Amount { slices: a.slices * times, mib: a.mib * times };
        Self { used: more(self.used), idle: more(self.idle) }
    }
}
