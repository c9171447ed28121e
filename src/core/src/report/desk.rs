//! Where a report is put together: everything read once, and the figures of whoever is asked about.

use std::collections::{BTreeMap, BTreeSet};

use super::area::{Area, Ground};
use super::books::{self, Line, Lines, Used};
use super::cohorts::Cohorts;
use super::input::{Name, Unit, World};
use super::mismatch::Found;
use super::output::{Figures, FlavorReport, Lent, ProfileReport};
use crate::id::NodeName;
use crate::node::Host;
use crate::profile::ProfileName;
use crate::time::Timestamp;

/// Slices by profile.
pub type Slices = BTreeMap<ProfileName, u64>;

/// What has been claimed by workloads of a ClusterQueue, by flavor.
pub type Claimed = BTreeMap<Name, Slices>;

/// Everything that reports are about, read.
pub struct Desk<'a> {
    /// The world.
    pub world: &'a World,
    /// The GPUs.
    pub ground: Ground<'a>,
    /// The Cohorts.
    pub cohorts: Cohorts,
    /// The nodes of each flavor, by labels.
    pub nodes: BTreeMap<Name, BTreeSet<&'a NodeName>>,
    /// What each ClusterQueue lends, and what is wrong with how that is written.
    pub queues: BTreeMap<Name, (Lines, Found)>,
    /// What each Cohort lends by itself.
    pub cohort_lines: BTreeMap<Name, (Lines, Found)>,
    /// What all of them lend.
    pub all: Lines,
    /// What each Cohort and all below it lend.
    of_cohorts: BTreeMap<Name, Lines>,
    claimed: BTreeMap<Name, Claimed>,
    by_local_queue: BTreeMap<(Name, Name, Name), Slices>,
}

/// What somebody promises and has given away.
#[derive(Default)]
pub struct Account {
    /// Promised.
    pub lines: Lines,
    /// Had by workloads with quota.
    pub reserved: Used,
    /// Had by workloads that are admitted.
    pub admitted: Used,
    /// Had on nodes.
    pub claimed: Claimed,
}

impl<'a> Desk<'a> {
    /// Reads the world.
    pub fn new(now: Timestamp, world: &'a World) -> Self {
        let hosts: Vec<(&NodeName, &Host)> =
            world.nodes.values().filter_map(|node| Some((&node.name, node.host.as_ref()?))).collect();
        let of_flavor = |labels: &BTreeMap<String, String>| {
            let has =
                |host: &Host| labels.iter().all(|(key, value)| host.traits.labels.get(key) == Some(value));
            hosts.iter().filter(|(_, host)| has(host)).map(|(name, _)| *name).collect()
        };
        let read = |quotas: &[super::input::Quota]| {
            let mut found = Found::default();
            (books::lines(quotas, &mut found), found)
        };
        let mut desk = Self {
            ground: Ground::survey(now, world),
            cohorts: Cohorts::of(world),
            nodes: world.flavors.iter().map(|(name, labels)| (name.clone(), of_flavor(labels))).collect(),
            queues: world.queues.iter().map(|(name, queue)| (name.clone(), read(&queue.lends))).collect(),
            cohort_lines: world
                .cohorts
                .iter()
                .map(|(name, cohort)| (name.clone(), read(&cohort.lends)))
                .collect(),
            all: Lines::new(),
            of_cohorts: BTreeMap::new(),
            claimed: BTreeMap::new(),
            by_local_queue: BTreeMap::new(),
            world,
        };
        for (lines, _) in desk.queues.values().chain(desk.cohort_lines.values()) {
            books::merge(&mut desk.all, lines);
        }
        let cohorts: Vec<Name> = desk.cohorts.names().cloned().collect();
        desk.of_cohorts = cohorts.into_iter().map(|name| (name.clone(), desk.add_up(&name))).collect();
        desk.count_claims();
        desk
    }

    fn count_claims(&mut self) {
        for node in self.world.nodes.values() {
            for claim in node.mig.iter().flat_map(|mig| &mig.confirmed.claims) {
                let Some(owner) = self.world.owners.get(&claim.workload.uid) else { continue };
                let here =
                    |flavor: &&Name| self.nodes.get(*flavor).is_some_and(|nodes| nodes.contains(&node.name));
                let lent = self.queues.get(&owner.queue).into_iter().flat_map(|(lines, _)| lines.keys());
                // The node may have got other labels since; the flavor of a pod set stays.
                let flavor = owner.flavors.iter().find(here).or_else(|| lent.clone().find(here));
                let flavor = flavor.or(owner.flavors.first()).cloned();
                let count = |slices: &mut Slices| {
                    *slices.entry(claim.profile.clone()).or_default() += u64::from(claim.slices);
                };
                if let Some(flavor) = flavor {
                    count(self.claimed.entry(owner.queue.clone()).or_default().entry(flavor).or_default());
                }
                if let Some(local) = &owner.local_queue {
                    let key = (owner.queue.clone(), claim.workload.namespace.clone(), local.clone());
                    count(self.by_local_queue.entry(key).or_default());
                }
            }
        }
    }

    /// What workloads of a LocalQueue have claimed.
    pub fn claimed_by(&self, queue: &Name, namespace: &Name, local_queue: &Name) -> Slices {
        let key = (queue.clone(), namespace.clone(), local_queue.clone());
        self.by_local_queue.get(&key).cloned().unwrap_or_default()
    }

    /// The account of a ClusterQueue.
    pub fn account(&self, queue: &Name) -> Account {
        let known = self.world.queues.get(queue);
        Account {
            lines: self.queues.get(queue).map(|(lines, _)| lines.clone()).unwrap_or_default(),
            reserved: books::used(known.into_iter().flat_map(|queue| &queue.reserved)),
            admitted: books::used(known.into_iter().flat_map(|queue| &queue.admitted)),
            claimed: self.claimed.get(queue).cloned().unwrap_or_default(),
        }
    }

    /// The account of a Cohort with all below it.
    pub fn account_of_cohort(&self, cohort: &Name) -> Account {
        let members = || self.cohorts.queues(cohort).filter_map(|name| self.world.queues.get(name));
        let mut account = Account {
            lines: self.lines_of_cohort(cohort).cloned().unwrap_or_default(),
            reserved: books::used(members().flat_map(|queue| &queue.reserved)),
            admitted: books::used(members().flat_map(|queue| &queue.admitted)),
            claimed: Claimed::new(),
        };
        for (flavor, slices) in
            self.cohorts.queues(cohort).filter_map(|name| self.claimed.get(name)).flatten()
        {
            let all = account.claimed.entry(flavor.clone()).or_default();
            for (profile, n) in slices {
                *all.entry(profile.clone()).or_default() += n;
            }
        }
        account
    }

    /// What a Cohort and all below it promise.
    pub fn lines_of_cohort(&self, cohort: &Name) -> Option<&Lines> {
        self.of_cohorts.get(cohort)
    }

    fn add_up(&self, cohort: &Name) -> Lines {
        let mut lines = Lines::new();
        let members = self.cohorts.queues(cohort).filter_map(|name| self.queues.get(name));
        let own = self.cohorts.below(cohort).filter_map(|name| self.cohort_lines.get(name));
        members.chain(own).for_each(|(more, _)| books::merge(&mut lines, more));
        lines
    }

    /// The nodes of a flavor that a ClusterQueue can use.
    pub fn nodes_for(&self, queue: &Name, flavor: &Name) -> BTreeSet<&'a NodeName> {
        let mut nodes = self.nodes.get(flavor).cloned().unwrap_or_default();
        let allowed = self.world.queues.get(queue).and_then(|queue| queue.allowed.get(flavor));
        nodes.retain(|name| {
            let host = self.world.nodes.get(*name).and_then(|node| node.host.as_ref());
            host.is_some_and(|host| {
                allowed.into_iter().flatten().all(|c| c.select(name.as_str(), &host.traits))
            })
        });
        nodes
    }

    /// An account flavor by flavor, and all flavors together in GiB and in units.
    pub fn flavors(
        &self,
        account: &Account,
        nodes_of: impl Fn(&Name) -> BTreeSet<&'a NodeName>,
    ) -> (Vec<FlavorReport>, Figures, Figures) {
        let (mut gib, mut units, mut everywhere) = (Figures::default(), Figures::default(), BTreeSet::new());
        let mut reports = Vec::new();
        let names: BTreeSet<&Name> =
            account.lines.keys().chain(account.reserved.keys()).chain(account.claimed.keys()).collect();
        for name in names {
            let nodes = nodes_of(name);
            let report = self.flavor(account, name, &nodes);
            gib.add(&report.gib, 1);
            units.add(&report.units, 1);
            everywhere.extend(nodes);
            reports.push(report);
        }
        // Flavors may share nodes.
        let area = self.ground.area(&everywhere);
        (gib.possible, gib.free) = (area.possible_gib(), Some(area.free_gib()));
        (units.possible, units.free) = (area.units(), Some(area.free_units()));
        (reports, gib, units)
    }

    fn flavor(&self, account: &Account, name: &Name, nodes: &BTreeSet<&'a NodeName>) -> FlavorReport {
        let area = self.ground.area(nodes);
        let offers = area.offers();
        let (no_lines, no_slices) = (BTreeMap::new(), Slices::new());
        let lines = account.lines.get(name).unwrap_or(&no_lines);
        let (reserved, admitted) = (account.reserved.get(name), account.admitted.get(name));
        let claimed = account.claimed.get(name).unwrap_or(&no_slices);
        let lent = |unit: &Unit| {
            let line = lines.get(unit).copied().unwrap_or_default();
            let of = |used: Option<&BTreeMap<Unit, (u64, u64)>>| {
                used.and_then(|u| u.get(unit)).copied().unwrap_or_default()
            };
            let ((reserved, borrowed), (admitted, _)) = (of(reserved), of(admitted));
            let figures =
                Figures { nominal: line.nominal, borrowed, reserved, admitted, ..Figures::default() };
            let of_all = self.all.get(name).and_then(|lines| lines.get(unit));
            Lent {
                figures,
                borrowing_limit: line.borrowing_limit,
                lending_limit: line.lending_limit,
                nominal_of_all: of_all.map_or(0, |line| line.nominal),
            }
        };
        let memory = lines.contains_key(&Unit::Memory);
        let mut profiles: BTreeSet<&ProfileName> = claimed.keys().collect();
        profiles.extend(
            slices_of(lines).filter(|(profile, line)| is_about(profile, line, &offers)).map(|(p, _)| p),
        );
        profiles.extend(
            reserved.into_iter().flatten().filter(|(_, (n, _))| *n > 0).filter_map(|(unit, _)| slices(unit)),
        );
        if memory {
            profiles.extend(offers.keys());
        }
        let (mut gib, mut units) = (Figures::default(), Figures::default());
        let mut reports = Vec::new();
        for profile in profiles {
            let mut lent = lent(&Unit::Slices(profile.clone()));
            lent.figures.claimed = claimed.get(profile).copied().unwrap_or(0);
            lent.figures.possible = area.possible(profile);
            lent.figures.free = area.free(profile);
            let slice_gib = profile.memory_gib().unwrap_or(0);
            let slice_units = offers.get(profile).copied().unwrap_or(0);
            gib.add(&lent.figures, slice_gib.into());
            units.add(&lent.figures, slice_units.into());
            let free_as_it_is = area.free_as_it_is(profile);
            reports.push(ProfileReport {
                profile: profile.clone(),
                lent,
                free_as_it_is,
                slice_gib,
                slice_units,
            });
        }
        let (possible_gib, free_gib) = (area.possible_gib(), Some(area.free_gib()));
        let memory = memory.then(|| {
            let mut lent = lent(&Unit::Memory);
            (lent.figures.claimed, lent.figures.possible, lent.figures.free) =
                (gib.claimed, possible_gib, free_gib);
            lent
        });
        // Where memory is counted by itself, that is what counts.
        let counted = memory.map_or(gib, |memory| memory.figures);
        let gib = Figures { possible: possible_gib, free: free_gib, ..counted };
        let units = Figures { possible: area.units(), free: Some(area.free_units()), ..units };
        let together = area.together(&promised(lines));
        let (gpus, nodes) = (area.models(), self.with_gpus(nodes));
        FlavorReport { name: name.clone(), nodes, gpus, profiles: reports, memory, together, gib, units }
    }

    /// How many of these nodes have GPUs.
    pub fn with_gpus(&self, nodes: &BTreeSet<&'a NodeName>) -> u64 {
        self.ground.with_gpus().filter(|name| nodes.contains(name)).count() as u64
    }

    /// These nodes taken together.
    pub fn area(&self, nodes: &BTreeSet<&'a NodeName>) -> Area<'_> {
        self.ground.area(nodes)
    }
}

/// The slices that lines promise.
pub fn promised(lines: &BTreeMap<Unit, Line>) -> Slices {
    slices_of(lines).map(|(profile, line)| (profile.clone(), line.nominal)).collect()
}

/// The lines that are about slices.
pub fn slices_of(lines: &BTreeMap<Unit, Line>) -> impl Iterator<Item = (&ProfileName, &Line)> {
    lines.iter().filter_map(|(unit, line)| Some((slices(unit)?, line)))
}

fn slices(unit: &Unit) -> Option<&ProfileName> {
    match unit {
        Unit::Slices(profile) => Some(profile),
        Unit::Memory => None,
    }
}

/// Whether a line is worth a row: in one resource group, every flavor has a quota of every resource, mostly 0.
fn is_about(profile: &ProfileName, line: &Line, offers: &BTreeMap<ProfileName, u32>) -> bool {
    line.nominal > 0 || line.borrowing_limit.is_some_and(|limit| limit > 0) || offers.contains_key(profile)
}
